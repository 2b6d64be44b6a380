"""Image sets that every test of data may open."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.pictures import CLASSES, fill


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`train/` with 4 + 5 + 6 images and `val/` with 2 of each."""
    fill(tmp_path / "images" / "train", dict(zip(CLASSES, (4, 5, 6), strict=True)))
    fill(tmp_path / "images" / "val", dict.fromkeys(CLASSES, 2), seed=50)
    return tmp_path / "images"


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name, count in (("train", 40), ("test", 20)):
        np.savez_compressed(
            tmp_path / f"{name}.npz",
            images=generator.integers(0, 256, (count, 28, 28), dtype=np.uint8),
            labels=(np.arange(count) % 3).astype(np.uint8),
            classes=np.array(CLASSES),
        )
    return tmp_path
