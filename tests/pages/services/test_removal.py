"""The effect of removing one channel, as Importance shows it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pages.services import open_model, removal


@pytest.fixture
def folder_with_a_damaged_image(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for label in range(10):
        folder = tmp_path / "images" / "val" / f"class {label}"
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "images" / "val" / "class 0" / "1.png").write_bytes(b"not an image")
    return tmp_path / "images"


def test_labels_stay_with_their_images_where_one_cannot_be_read(
    jobs_at_once: None, folder_with_a_damaged_image: Path
) -> None:
    demo = open_model.inspect("demo")
    assert demo is not None
    model = replace(demo, dataset=str(folder_with_a_damaged_image))
    job = removal.removal_job(model, "ffn", 0, 3)
    assert job.result is not None, job.error
    effect = job.result
    data = model.images("val")
    assert len(effect.kl) == len(effect.labels) == len(effect.indices) == len(data) - 1
    assert effect.labels.tolist() == [int(data.labels()[index]) for index in effect.indices]
