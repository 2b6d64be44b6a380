"""The demo's images and sets by their timm names; names that cannot be opened."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from tests.support.errors import refused
from tests.support.pictures import CLASSES, COLOUR, GREY, fill, opened, picture
from upvit_core.errors import DataError


def test_demo_images(demo: Path) -> None:
    for split, name, count in (("train", "train", 40), ("val", "test", 20)):
        images = opened("demo", split, pretrained_cfg=GREY, root=str(demo), num_classes=3)
        with np.load(demo / f"{name}.npz") as arrays:
            pixels, labels = arrays["images"], arrays["labels"]
        assert (len(images), images.class_names) == (count, CLASSES)
        x, y = (torch.cat(parts) for parts in zip(*images.batches(7), strict=True))
        assert torch.equal(
            x, ((torch.from_numpy(pixels).float() / 255 - GREY["mean"][0]) / GREY["std"][0]).unsqueeze(1)
        )
        assert y.tolist() == labels.tolist()
        assert np.array_equal(images.image(3), pixels[3])
    changed = demo / "train.npz"
    first = opened("demo", pretrained_cfg=GREY, root=str(demo)).digest
    with np.load(changed) as arrays:
        content = dict(arrays)
    content["images"] = 255 - content["images"]
    np.savez_compressed(changed, **content)
    assert opened("demo", pretrained_cfg=GREY, root=str(demo)).digest != first


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        {"images": np.zeros((2, 28, 28), np.uint8)},
        {"images": np.zeros((2, 28, 28)), "labels": np.zeros(2, np.uint8), "classes": np.array(CLASSES)},
        {"images": np.zeros((2, 28, 28), np.uint8), "labels": np.full(2, 9), "classes": np.array(CLASSES)},
        {"images": np.zeros((2, 28, 28), np.uint8), "labels": np.zeros(2), "classes": np.array([{"a": 1}], object)},
    ],
)
def test_damaged_demo_images(content: bytes | dict[str, np.ndarray], tmp_path: Path) -> None:
    if isinstance(content, bytes):
        (tmp_path / "train.npz").write_bytes(content)
    else:
        np.savez(tmp_path / "train.npz", **content)
    with refused(DataError, "train.npz", "damaged"):
        opened("demo", root=str(tmp_path))


def test_torchvision_set_by_timms_name(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]:
        content = {
            "data": generator.integers(0, 256, (4, 3072), dtype=np.uint8),
            "labels": generator.integers(0, 10, 4).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {index}" for index in range(10)]}))

    class Unchecked(datasets.CIFAR10):
        def _check_integrity(self) -> bool:
            return True

        def _load_meta(self) -> None:
            self.classes = [f"class {index}" for index in range(10)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("timm.data.dataset_factory", fromlist=["_"])._TORCH_BASIC_DS, "cifar10", Unchecked)
        train = opened("torch/cifar10", root=str(tmp_path), num_classes=10)
        val = opened("torch/cifar10", "val", root=str(tmp_path))
    reference = Unchecked(str(tmp_path), train=True)
    assert (len(train), len(val)) == (20, 4)
    assert train.labels().tolist() == reference.targets
    assert train.class_names[9] == "class 9"
    assert np.array_equal(train.image(7), reference[7][0])
    assert train.digest != val.digest
    x, _ = next(train.batches(3))
    assert x.shape == (3, 3, 16, 16)


def test_hugging_face_set_by_timms_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reader:
        def __init__(self) -> None:
            self.class_to_idx = {"ant": 0, "bee": 1}

        def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
            buffer = io.BytesIO()
            picture(index).save(buffer, "PNG")
            return buffer, index % 2

        def iter_targets(self) -> list[int]:
            return [0, 1, 0, 1]

    def create(name: str, root: str | None, split: str) -> object:
        if split == "validation":
            raise ValueError("Unknown split 'validation'")
        return type("Dataset", (), {"reader": Reader()})()

    monkeypatch.setattr("upvit_core.data.named.create_dataset", create)
    images = opened("hfds/owner/insects", "val", num_classes=2)
    assert (images.class_names, images.labels().tolist()) == (("ant", "bee"), [0, 1, 0, 1])
    assert np.array_equal(images.image(2), picture(2))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", ("demo",)),
        ("no/such/folder", ("no/such/folder", "does not exist")),
        ("tfds/mnist", ("stream",)),
        ("torch/cifar10", ("root",)),
        ("hfds/owner/no-such-set", ("hfds/owner/no-such-set",)),
    ],
)
def test_specs_that_cannot_be_opened(spec: str, words: tuple[str, ...]) -> None:
    with refused(DataError, *words):
        opened(spec)


def test_a_named_set_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(DataError, "no_such_set"):
        opened("torch/no_such_set", root=str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    with refused(DataError, "no network", str(tmp_path)):
        opened("torch/cifar10", root=str(tmp_path))


def test_folders_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "ant").mkdir(parents=True)
    (tmp_path / "hollow" / "bee").mkdir()
    (tmp_path / "file.txt").write_text("x")
    fill(tmp_path / "single", {"ant": 3})
    for spec, split, words in (
        (tmp_path / "empty", "train", ("empty", "no class folders")),
        (tmp_path / "hollow", "train", ("hollow", "no images")),
        (tmp_path / "single", "train", ("one class (ant)",)),
        (tmp_path / "file.txt", "train", ("file.txt", "archive")),
        (folder, "test", ("'test'", "val")),
    ):
        with refused(DataError, *words):
            opened(spec, split)


def test_classes_must_be_those_of_the_model(folder: Path) -> None:
    with refused(DataError, "3 classes", "1000"):
        opened(folder, num_classes=1000)
    assert len(opened(folder, num_classes=3)) == 15


def test_a_model_of_four_channels_has_no_images(folder: Path) -> None:
    with refused(DataError, "4 channels"):
        opened(folder, pretrained_cfg={**COLOUR, "input_size": (4, 16, 16)})
