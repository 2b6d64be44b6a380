"""A walk over timm's registered Vision Transformers: each is opened, scored, cut to half, saved and opened again."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest
import timm
import torch

from tests.support.shrunk import NAMES, shrunk, structure_of
from tests.support.tiny import TensorProxy
from upvit_core.errors import UnsupportedModelError
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.magnitude import Magnitude
from upvit_core.models.build import adapt, build_model, live_tensors, shape_of
from upvit_core.models.checkpoint import load_model, save_model
from upvit_core.models.config import TIMM_MODULES
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.profiling.macs import count_parameters
from upvit_core.pruning.surgery import prune

TARGET = 0.9
TABLE_OF = "1.0.31"
README = Path(__file__).resolve().parents[2] / "upvit_core" / "README.md"
HALF = Ratios.equal(0.5)


def walk(name: str, folder: Path) -> str:
    """The sentence with which a name is refused; empty where all that the method does to it works."""
    stock = shrunk(name)
    try:
        shape = shape_of(stock, name)
    except UnsupportedModelError as error:
        return str(error).removeprefix(f"{name}: ").removeprefix(f"{name} ")
    model = build_model(shape).eval()
    model.load_state_dict(live_tensors(stock))
    images = torch.randn(2, shape.in_chans, *shape.img_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(images), stock(images), rtol=1e-4, atol=1e-4)
    adapter = adapt(model, shape)
    with torch.no_grad():
        torch.testing.assert_close(adapter.run_from(0, adapter.embed(images)), model(images), rtol=1e-4, atol=1e-4)
    for criterion in (Magnitude(2), Fisher()):
        plan = plan_uniform(criterion.attribute(adapter, TensorProxy(images)), HALF, snap=True)
        thin = prune(model, shape, plan)
        assert sum(p.numel() for p in thin.parameters()) == count_parameters(plan.shape_after)
    save_model(thin, folder, shape=plan.shape_after, pretrained_cfg={}, name=name)
    again = load_model(folder)
    with torch.no_grad():
        torch.testing.assert_close(again.model(images), thin(images))
    return ""


@cache
def reason(name: str) -> str:
    """`walk` of a name; a test of one is a test of all that have its structure."""
    with tempfile.TemporaryDirectory() as folder:
        return walk(name, Path(folder))


def by_structure() -> dict[str, str]:
    """The sentence of every name, from a walk of the first name of each structure."""
    first: dict[str, str] = {}
    return {name: reason(first.setdefault(structure_of(name), name)) for name in NAMES}


def table(reasons: dict[str, str]) -> str:
    """The table of models in `upvit_core/README.md`."""
    open_names = [name for name, why in reasons.items() if not why]
    lines = [f"| of timm {timm.__version__} | names | of them open |", "|---|---|---|"]
    for module in TIMM_MODULES:
        names = timm.list_models(module=module)
        lines.append(f"| `{module}` | {len(names)} | {len(set(names) & set(open_names))} |")
    share = f"{100 * len(open_names) / len(reasons):.1f} %"
    lines += [f"| together | {len(reasons)} | {len(open_names)} ({share}) |", "", "| refused | names |", "|---|---|"]
    for why in sorted({why for why in reasons.values() if why}):
        names = [f"`{name}`" for name in reasons if reasons[name] == why]
        lines.append(f"| {why.split(', which is not')[0]} | {', '.join(names)} |")
    return "\n".join(lines)


def compared(reasons: dict[str, str]) -> None:
    assert sum(not why for why in reasons.values()) >= TARGET * len(NAMES)
    if timm.__version__ == TABLE_OF:
        assert table(reasons) in README.read_text(encoding="utf-8"), f"README should have:\n{table(reasons)}"


def test_every_structure_is_scored_cut_and_saved_or_refused_in_a_sentence() -> None:
    compared(by_structure())


@pytest.mark.slow
def test_every_name_is_scored_cut_and_saved_or_refused_in_a_sentence() -> None:
    compared({name: reason(name) for name in NAMES})
