"""Maps of real models: one cut against the plain way, stopping and going on, other families, the demo's errors."""

from pathlib import Path

import numpy as np
import pytest
import timm

from tests.support.tiny_text import write_letters_model
from upvit_core.data import open_images, proxy_indices
from upvit_core.errors import Cancelled, MapError
from upvit_core.evaluation import evaluate
from upvit_core.importance.magnitude import Magnitude
from upvit_core.mapping.grow import Goal, grow
from upvit_core.mapping.measure import CutMeter
from upvit_core.mapping.surrogate import Surrogate
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import LoadedModel, load_model, save_model, shape_of
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.ratios import plan_uniform
from upvit_core.planning.what_if import WhatIf
from upvit_core.pruning.prune import cut
from upvit_core.records.basis import Basis
from upvit_core.records.map import Map
from upvit_core.records.ratios import Ratios
from upvit_core.records.scores import ImportanceScores

NEVER = Goal(kl=0)


def scores_of(loaded: LoadedModel) -> ImportanceScores:
    return Magnitude(2).attribute(adapt(loaded.model, loaded.shape))


def demo(held_out: int, **settings) -> CutMeter:
    loaded = load_model("demo", device="cpu")
    val, train = (open_images("demo", split, pretrained_cfg=loaded.pretrained_cfg) for split in ("val", "train"))
    scores = ImportanceScores.load(DEMO_FOLDER / "scores.safetensors")
    return CutMeter(loaded, scores, val, train, held_out=held_out, **settings)


@pytest.mark.parametrize("settings", [{}, {"basis": Basis.DIRECTIONS, "repair": True, "fitted_to": 40}])
def test_a_measured_cut_is_what_prune_and_evaluate_find(settings) -> None:
    meter = demo(60, **settings)
    basis, repair = settings.get("basis", Basis.CHANNELS), settings.get("repair", False)
    plan = plan_uniform(meter.scores, Ratios(0.25, 0.5, 0.5), heads=3, snap=True, basis=basis)
    found = meter.measure(plan)
    student = cut(meter.loaded, plan, repair=repair, data="demo", images=40)
    batches = meter.test.batches(60, indices=proxy_indices(meter.test, 60, 0))
    plain = evaluate(student, batches, teacher=meter.loaded.model)
    assert (found.kl, found.kl_stderr, found.loss) == pytest.approx((plain.kl, plain.kl_stderr, plain.loss), rel=1e-4)
    assert found.top1 == pytest.approx(plain.top1)
    assert (found.plan, found.widths["residual"], found.heads[0]) == (plan.digest, 72, 3)
    whole = evaluate(meter.loaded.model, meter.test.batches(60, indices=meter.inputs.indices))
    assert meter.empty().whole.top1 == pytest.approx(whole.top1)


def test_a_map_stops_and_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    meter, file = demo(20), tmp_path / "map.json"

    def stop(record: Map) -> None:
        record.save(file)
        if len(record.cuts) == 9:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        grow(meter, most=14, on_cut=stop)
    half = Map.load(file)
    went_on, at_once = grow(meter, half, most=14), grow(meter, most=14)
    assert [c.plan for c in went_on.cuts] == [c.plan for c in at_once.cuts]
    assert [c.kl for c in went_on.cuts] == pytest.approx([c.kl for c in at_once.cuts])
    assert [errors.cuts for errors in at_once.errors] == [12, 14]
    assert grow(meter, at_once, most=14) is at_once
    with pytest.raises(MapError, match="another model"):
        grow(demo(21), half, most=14)


def test_it_stops_when_it_is_good_enough_and_looks_near_the_sliders() -> None:
    meter, near = demo(20), WhatIf(20, 20, 6, 20)
    easy = grow(meter, most=40, goal=Goal(kl=9, kl_95=99, value=99))
    assert len(easy.cuts) == 24
    longer = grow(meter, easy, most=30, goal=NEVER, near=near)
    assert [cut.origin for cut in longer.cuts[24:]].count("uncertain") == 2
    removed = [1 - cut.widths["residual"] / 96 for cut in longer.cuts if cut.origin == "uncertain"]
    assert any(0.04 <= share <= 0.38 for share in removed)


def test_other_families(tmp_path: Path) -> None:
    """A pyramid with spatial reductions by top-1, a language model by perplexity, repaired too."""
    small = timm.create_model("pvt_v2_b0", depths=(1, 1, 1, 1), embed_dims=(8, 8, 10, 16), num_classes=10, in_chans=1)
    small.pretrained_cfg["input_size"] = (1, 32, 32)
    shape = shape_of(small, "small")
    save_model(small, tmp_path / "pvt", shape=shape, pretrained_cfg=small.pretrained_cfg, name="small")
    pytest.importorskip("transformers")
    folders = {tmp_path / "pvt": "demo", write_letters_model(tmp_path / "lm"): str(tmp_path / "lm" / "text.txt")}
    for folder, data in folders.items():
        loaded = load_model(str(folder), device="cpu")
        opening = {"pretrained_cfg": loaded.pretrained_cfg, "num_classes": loaded.shape.num_classes}
        val, train = (open_images(data, split, **opening) for split in ("val", "train"))
        meter = CutMeter(loaded, scores_of(loaded), val, train, repair=True, held_out=16, fitted_to=16)
        record = grow(meter, most=9, goal=NEVER)
        estimates = Surrogate(record).estimate(record.cuts)
        assert record.fitted is not None
        assert record.samples == 16 * loaded.shape.answers
        assert np.isfinite(estimates.value).all()
        assert (estimates.kl_low <= estimates.kl).all()
        assert (estimates.kl <= estimates.kl_high).all()
    with pytest.raises(MapError, match="needs training data"):
        CutMeter(loaded, meter.scores, val, repair=True)
    with pytest.raises(MapError, match="not of letters"):
        CutMeter(loaded, ImportanceScores.load(DEMO_FOLDER / "scores.safetensors"), val)


def test_the_demo_is_foretold() -> None:
    """Looser than what `tests/benchmarks/map.py` measures, since these images and cuts are few."""
    meter = demo(250)
    surrogate = Surrogate(grow(meter, most=32, goal=NEVER))
    rng, cuts = np.random.default_rng(123), []
    for residual, attention, ffn in rng.integers(0, 96, (20, 3)).tolist():
        position = WhatIf(residual, attention, int(rng.choice([3, 6])), ffn)
        cuts.append(meter.measure(position.plan_widths(meter.scores)))
    estimates = surrogate.estimate(cuts)
    kl, top1 = np.array([cut.kl for cut in cuts]), np.array([cut.top1 for cut in cuts])
    assert np.median(np.abs(estimates.kl / kl - 1)) <= 0.15
    assert np.median(np.abs(estimates.value - top1)) <= 8
    assert np.mean((estimates.kl_low <= kl) & (kl <= estimates.kl_high)) >= 0.5
    assert np.mean((estimates.value_low <= top1) & (top1 <= estimates.value_high)) >= 0.5
