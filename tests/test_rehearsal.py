"""Everything that computes with a model, on a GPU in rehearsal: no device is mixed, and the CPU's numbers come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.rehearsal import OnDevice, rehearsal
from tests.support.small_job import make_job
from tests.support.small_run import CFG, write_images, write_teacher
from tests.support.tiny import TensorProxy, images, tiny
from tests.support.tiny_pvt import tiny_pvt
from tests.support.tiny_text import write_letters_model
from tests.support.verbs import call
from upvit_core.data import open_images
from upvit_core.importance.fisher import Fisher
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import save_model
from upvit_core.records.criteria import OF_DIRECTIONS, CriterionName
from upvit_core.records.scores import ImportanceScores
from upvit_core.training.distillation import isolated_rng
from upvit_core.training.settings import FINETUNE_PRESETS, PRESETS

FAMILIES = ("vit", "pvt", "gpt2")
HALF = ("--residual", "0.5", "--attention", "0.5", "--ffn", "0.5")
SEVERAL = 80
"""Inputs: more than one batch, and enough that least squares are well posed in float32."""


@dataclass(frozen=True)
class Home:
    """A model with data that it can be scored and judged on, in a folder."""

    folder: Path
    model: Path
    data: Path

    def on(self, device: str, verb: str, *arguments: object, images: bool = True) -> dict[str, Any]:
        """Call a verb of this model on a device; `OUT` in the arguments is a folder of the device's own."""
        own = self.folder / device.partition(":")[0]
        own.mkdir(exist_ok=True)
        data = ("--data", self.data) if images else ()
        words = [str(word).replace("OUT", str(own)) for word in arguments]
        return call(verb, self.model, *words, *data, "--device", device)

    def both(self, verb: str, *arguments: object, images: bool = True) -> list[dict[str, Any]]:
        """The verb's results on the CPU and in rehearsal."""
        before = self.on("cpu", verb, *arguments, images=images)
        with rehearsal():
            return [before, self.on("cuda:0", verb, *arguments, images=images)]

    def files(self, name: str) -> list[Path]:
        return [self.folder / device / name for device in ("cpu", "cuda")]


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Home]:
    made: dict[str, Home] = {}

    def home(family: str) -> Home:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            model, data = folder / "model", folder / "images"
            if family == "gpt2":
                model.mkdir()
                write_letters_model(model)
                data = model / "text.txt"
            elif family == "pvt":
                module, shape = tiny_pvt(torch.float32, embed_dims=(4, 8, 12, 8))
                cfg = {**CFG, "input_size": (3, 64, 64)}
                save_model(module, model, shape=shape, pretrained_cfg=cfg, name="tiny pvt")
                write_images(data, side=64, train=20)
            else:
                write_teacher(model)
                write_images(data, train=20)
            made[family] = Home(folder, model, data)
        return made[family]

    return home


def assert_same_scores(paths: list[Path]) -> None:
    cpu, device = map(ImportanceScores.load, paths)
    for key, values in cpu.values.items():
        np.testing.assert_allclose(device.values[key], values, rtol=1e-4, atol=1e-6 * values.max(), err_msg=key)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("criterion", [name.value for name in CriterionName])
def test_scores_of_channels(homes: Callable[[str], Home], family: str, criterion: str) -> None:
    if (family, criterion) == ("gpt2", "taylor"):
        pytest.skip("a text has no labels")
    home, needs_images = homes(family), CriterionName(criterion).entry.needs_images
    count = ("--images", SEVERAL) if needs_images else ()
    home.both("score", "--criterion", criterion, "--out", f"OUT/{criterion}.safetensors", *count, images=needs_images)
    assert_same_scores(home.files(f"{criterion}.safetensors"))


@pytest.mark.parametrize("form", [{"directions": "all"}, {"directions": "labels"}, {"residual": "derivative"}], ids=str)
def test_forms_of_fisher(form: dict[str, Any]) -> None:
    model, shape = tiny("3 heads, 5 blocks", torch.float32)
    proxy = TensorProxy(images(SEVERAL, torch.float32))
    expected = Fisher(**form).attribute(adapt(model, shape), proxy).values
    with rehearsal():
        got = Fisher(**form).attribute(adapt(on_device(model), shape), proxy).values
    for key, values in expected.items():
        np.testing.assert_allclose(got[key], values, rtol=1e-4, atol=1e-6 * values.max(), err_msg=key)


@pytest.mark.parametrize("criterion", OF_DIRECTIONS)
def test_scores_of_directions(homes: Callable[[str], Home], criterion: str) -> None:
    home, out = homes("vit"), f"directions-{criterion}.safetensors"
    home.both("score", "--basis", "directions", "--criterion", criterion, "--out", f"OUT/{out}", "--images", SEVERAL)
    assert_same_scores(home.files(out))


@pytest.mark.parametrize("repair", [(), ("--repair",)], ids=["cut", "repaired"])
@pytest.mark.parametrize(
    ("family", "basis"), [("vit", "channels"), ("vit", "directions"), ("pvt", "channels"), ("gpt2", "channels")]
)
def test_cuts_and_what_is_done_with_them(
    homes: Callable[[str], Home], family: str, basis: str, repair: tuple[str, ...], tmp_path: Path
) -> None:
    home, name = homes(family), f"{basis}{len(repair)}"
    scores = home.folder / f"{basis}.safetensors"
    if not scores.exists():
        given = ("--criterion", "fisher", "--images", SEVERAL, "--data", home.data)
        call("score", home.model, *given, "--basis", basis, "--out", scores)
    call("plan", scores, *HALF, "--basis", basis, "--out", tmp_path / "plan.json")
    fitted = ("--images", SEVERAL) if repair or basis == "directions" else ()
    home.both("prune", tmp_path / "plan.json", *repair, "--out", f"OUT/{name}", *fitted, images=bool(fitted))
    results = []
    for thin in home.files(name):
        results += Home(home.folder, thin, home.data).both("evaluate", "--teacher", home.model)
    assert [result["kl"] for result in results] == pytest.approx([results[0]["kl"]] * 4, rel=0.2 if repair else 1e-3)
    assert results[0]["kl"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_depth(homes: Callable[[str], Home], family: str) -> None:
    depth = {"vit": "2", "pvt": "4", "gpt2": "1"}[family]
    cpu, device = homes(family).both("score-blocks", "--depth", depth, "--images", 20, "--out", "OUT/blocks.json")
    assert device["removed"] == cpu["removed"]
    assert device["kl"] == pytest.approx(cpu["kl"], rel=1e-4)


@pytest.mark.parametrize(
    ("basis", "repair"), [("channels", ()), ("channels", ("--repair",)), ("directions", ("--repair",))]
)
def test_maps(homes: Callable[[str], Home], basis: str, repair: tuple[str, ...], tmp_path: Path) -> None:
    home, scores = homes("vit"), tmp_path / "scores.safetensors"
    call("score", home.model, "--data", home.data, "--images", SEVERAL, "--basis", basis, "--out", scores)
    more = ("--basis", basis, *repair, "--cuts", 3, "--images", 20, "--fitted-to", SEVERAL)
    home.both("map", "--scores", scores, "--out", f"OUT/map-{basis}{len(repair)}.json", *more)
    from upvit_core.records.map import Map

    cpu, device = map(Map.load, home.files(f"map-{basis}{len(repair)}.json"))
    assert [cut.kl for cut in device.cuts] == pytest.approx([cut.kl for cut in cpu.cuts], rel=0.2 if repair else 1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_throughput_and_export(homes: Callable[[str], Home], family: str) -> None:
    home = homes(family)
    with rehearsal():
        measured = home.on("cuda:0", "profile", "--measure", images=False)
        assert measured["images_per_s"] > 0
        if family != "gpt2":
            home.on("cuda:0", "export", "--out", "OUT/model.onnx", images=False)


@pytest.mark.parametrize(
    "name", [*(n for n in PRESETS if n != "language"), *map("finetune {}".format, FINETUNE_PRESETS)]
)
def test_a_step_of_training_neither_waits_nor_copies_but_its_batch(
    homes: Callable[[str], Home], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = name.startswith("finetune ")
    settings = FINETUNE_PRESETS[name.split()[1]] if tuning else PRESETS[name]
    train = open_images(str(homes("vit").data), "train", pretrained_cfg=CFG)
    changes = settings.model_dump() | {"batch_size": 8, "feature_weight": 0.0 if tuning else 0.5, "clip_grad": 1.0}
    with rehearsal() as counted:
        job = make_job(train, device=torch.device("cuda:0"), without_teacher=tuning, **changes)
        assert isinstance(next(job.student.parameters()), OnDevice)
        with isolated_rng():
            batches = job.batches.steps(0, 2)
            job.train_step(*next(batches))  # the optimiser makes its state
            counted.clear()
            job.train_step(*next(batches))
        assert not counted.waits
        assert sum(counted.copies.values()) == 2, counted.copies
        assert np.isfinite(job.take_row()["loss"])


def on_device(model: torch.nn.Module) -> torch.nn.Module:
    import copy

    return copy.deepcopy(model).to("cuda:0")


def test_the_measurements_of_the_first_day_on_a_gpu_run_through(tmp_path: Path) -> None:
    from tests.benchmarks import gpu

    assert gpu.main(["--rehearse", "--out", str(tmp_path / "rows.json")]) == 0
    assert (tmp_path / "rows.json").exists()
