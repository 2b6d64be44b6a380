"""Maps as files: what is written, what is refused."""

import json

import pytest

from tests.support.planning import SHAPE, scores
from upvit_core.errors import MapError
from upvit_core.mapping.points import Worth
from upvit_core.planning.ratios import plan_uniform
from upvit_core.records.map import Map, Measured, MeasuredCut
from upvit_core.records.plan import PruningPlan
from upvit_core.records.ratios import Ratios

WHOLE = Measured(kl=0, kl_stderr=0, top1=90, loss=0.3, loss_stderr=0.01)


def measured(plan: PruningPlan, kl: float = 0.5, top1: float = 70) -> MeasuredCut:
    point = Worth(scores(), plan.basis).of(plan).model_dump()
    return MeasuredCut(**point, kl=kl, kl_stderr=0.01, top1=top1, loss=1, loss_stderr=0.02, plan=plan.digest)


def made(*cuts: MeasuredCut) -> Map:
    ends = {"model_digest": "m", "scores_digest": scores().digest, "data_digest": "d", "inputs": 10, "samples": 10}
    return Map(**ends, source_shape=SHAPE.to_dict(), whole=WHOLE, cuts=cuts)


def test_round_trip_and_growth(tmp_path) -> None:
    first, second = (plan_uniform(scores(), Ratios(share), heads=2) for share in (0.25, 0.5))
    record = made(measured(first))
    record.save(tmp_path / "map.json")
    assert Map.load(tmp_path / "map.json") == record
    grown = record.with_cut(measured(second))
    assert (len(record.cuts), len(grown.cuts)) == (1, 2)
    assert grown.with_cut(measured(second, kl=9)) is grown
    assert grown.measured(second.digest) == measured(second)
    assert grown.measured("another") is None
    assert record.digest != grown.digest
    assert record.belongs_to == grown.belongs_to


BREAKS = [
    (lambda m: m["cuts"].append(m["cuts"][0]), "measured twice"),
    (lambda m: m["cuts"][0]["lost"].pop("ffn.0"), "what is lost"),
    (lambda m: m["cuts"][0]["widths"].update(residual=99), "keeps 99 channels of residual, of 24"),
    (lambda m: m["cuts"][0]["widths"].update(reduction=1), "keeps 1 channels of reduction, of 0"),
    (lambda m: m["cuts"][0].update(kl=-1), "greater than or equal to 0"),
    (lambda m: m["cuts"][0]["heads"].update({"7": 2}), "does not have"),
    (lambda m: m.update(repair=True), "fitted"),
    (lambda m: m.update(version=2), "version"),
    (lambda m: m.update(source_shape={}), "malformed"),
]


@pytest.mark.parametrize(("change", "message"), BREAKS)
def test_malformed_maps_are_refused_in_one_sentence(change, message: str) -> None:
    content = json.loads(made(measured(plan_uniform(scores(), Ratios(0.5), heads=2))).to_json())
    change(content)
    with pytest.raises(MapError, match=message) as caught:
        Map.from_json(json.dumps(content))
    assert "\n" not in str(caught.value)
