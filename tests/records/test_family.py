"""Every architecture of the registry has every part, and none is taken for another."""

from dataclasses import fields, replace

import pytest

from upvit_core.errors import UnsupportedModelError
from upvit_core.models.layout import layout
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.family import FAMILIES, Family, load
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.task import task_of
from upvit_core.training.settings import PRESETS

FACTS = {"title", "task", "library", "has_directions", "one_share", "preset", "ffn_kept", "ffn_passing", "live"}
PARTS = [field.name for field in fields(Family) if field.name not in FACTS]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_exists(family: str, part: str) -> None:
    assert callable(load(getattr(FAMILIES[family], part)))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_live_classes_exist(family: Family) -> None:
    for kind, reader in family.live.items():
        module, _, name = kind.partition(":")
        assert isinstance(getattr(__import__(module, fromlist=[name]), name), type)
        assert callable(load(reader))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_facts_name_a_preset_and_a_task(family: Family) -> None:
    assert not family.preset or family.preset in PRESETS
    assert task_of(
        replace(deit_shape("tiny"), family=next(k for k, v in FAMILIES.items() if v is family))
    ).has_pictures == (family.task == "images")


def test_another_architecture_is_refused_everywhere() -> None:
    """Stages alone make no PVTv2, and their absence no ViT."""
    swin = replace(deit_shape("tiny"), name="swin", family="swin")
    for ask in (layout, count_parameters, count_macs, task_of):
        with pytest.raises(UnsupportedModelError, match="swin is of the family 'swin', which is not understood"):
            ask(swin)
    with pytest.raises(UnsupportedModelError, match="swin"):
        _ = swin.tokens_at(0)
