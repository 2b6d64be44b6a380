"""A large folder opens by a kept scan, which notices what comes and goes."""

import os
from pathlib import Path

import pytest

from tests.support.pictures import files, fill, opened
from upvit_core.data import disk


@pytest.fixture
def large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(disk, "KEPT_FROM", 5)
    for place, _, _ in os.walk(folder):
        os.utime(place, (1e9, 1e9))  # long before the scan
    return folder


def test_a_second_opening_scans_nothing(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = {split: opened(large, split) for split in ("train", "val")}
    monkeypatch.setattr(disk.os, "scandir", lambda place: pytest.fail(f"{place} was scanned"))
    for split, images in first.items():
        again = opened(large, split)
        assert (files(again), again.digest) == (files(images), images.digest)


@pytest.mark.parametrize("change", ["comes", "goes", "renamed", "folder", "damaged"])
def test_a_change_is_noticed(change: str, large: Path) -> None:
    before = files(opened(large))
    first = large / before[0]
    if change == "comes":
        fill(large / "train" / "ant", {"inner": 1})
    elif change == "goes":
        first.unlink()
    elif change == "renamed":
        first.rename(first.with_name("zzz.png"))
    elif change == "folder":
        fill(large / "train", {"new": 2})
        fill(large / "val", {"new": 2})
    else:
        (kept,) = disk.cache_folder("folders").iterdir()
        kept.write_bytes(kept.read_bytes()[:100])
    now = files(opened(large))
    assert (now == before) == (change == "damaged")
    assert sorted(now) == sorted(str(p.relative_to(large)) for p in (large / "train").rglob("*.png"))


def test_a_scan_is_not_kept_of_what_has_just_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "KEPT_FROM", 5)
    monkeypatch.setattr(disk, "TICK_NS", 10**12)
    opened(folder)
    assert not disk.cache_folder("folders").exists()
