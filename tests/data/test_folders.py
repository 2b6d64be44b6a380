"""Folders of images: what they hold, how they are split, and images that cannot be read."""

import os
import pickle
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch.utils.data import DataLoader
from torchvision import datasets

from tests.support.errors import refused
from tests.support.pictures import CLASSES, COLOUR, GREY, files, fill, opened
from upvit_core.data import eval_transform, training_transform
from upvit_core.errors import DataError


def test_folder_has_the_files_and_labels_of_torchvisions_image_folder(folder: Path) -> None:
    for split in ("train", "val"):
        images, reference = opened(folder, split), datasets.ImageFolder(folder / split)
        assert images.class_names == tuple(reference.classes)
        assert images.labels().tolist() == reference.targets
        assert [folder / name for name in files(images)] == [Path(path) for path, _ in reference.samples]
        assert np.array_equal(images.image(1), reference[1][0])


def test_names_that_are_no_utf8_are_names(folder: Path) -> None:
    """Such names are left by an archive from another system."""
    before = opened(folder)
    for split in ("train", "val"):
        old = folder / split / before.class_names[0]
        old.rename(old.with_name(os.fsdecode(b"a-caf\xe9")))
    images = opened(folder)
    assert images.class_names[0] == os.fsdecode(b"a-caf\xe9")
    assert images.labels().tolist() == before.labels().tolist()
    assert images.digest != before.digest


def test_batches_are_what_timms_transform_gives(folder: Path) -> None:
    images, reference = opened(folder), datasets.ImageFolder(folder / "train")
    transform = create_transform(**resolve_data_config(pretrained_cfg=COLOUR), is_training=False)
    wanted = torch.stack([transform(image) for image, _ in reference])
    for _ in range(2):  # decoded, then from memory
        x, y = (torch.cat(parts) for parts in zip(*images.batches(4), strict=True))
        assert torch.equal(x, wanted)
        assert y.tolist() == reference.targets
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert [len(y) for _, y in images.batches(4)] == [4, 4, 4, 3]


def test_batches_follow_the_indices_given(folder: Path) -> None:
    images = opened(folder)
    whole = torch.cat([x for x, _ in images.batches(4)])
    order = [14, 0, 7, 7]
    x, y = (torch.cat(parts) for parts in zip(*images.batches(3, indices=order), strict=True))
    assert torch.equal(x, whole[order])
    assert y.tolist() == images.labels()[order].tolist()


def test_large_images_are_read_by_threads_in_the_same_order(folder: Path) -> None:
    images = opened(folder, pretrained_cfg={**COLOUR, "input_size": (3, 112, 112)})
    x = torch.cat([x for x, _ in images.batches(2)])
    transform = eval_transform({**COLOUR, "input_size": (3, 112, 112)})
    assert torch.equal(x, torch.stack([transform(images.image(index)) for index in range(len(images))]))
    half_read = images.batches(2)
    next(half_read)
    half_read.close()
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_what_is_too_large_to_keep_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upvit_core.data.images.CACHE_BYTES", 100)
    images = opened(folder)
    assert images.pixels.kept is None
    first, second = (torch.cat([x for x, _ in images.batches(4)]) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["validation", "valid", "test"])
def test_other_names_of_the_validation_folder(name: str, folder: Path) -> None:
    (folder / "val").rename(folder / name)
    assert len(opened(folder, "val")) == 6


def test_validation_may_lack_a_class_but_not_have_one_of_its_own(folder: Path) -> None:
    for path in (folder / "val" / "ant").iterdir():
        path.unlink()
    (folder / "val" / "ant").rmdir()
    images = opened(folder, "val")
    assert images.class_names == CLASSES
    assert images.labels().tolist() == [1, 1, 2, 2]
    fill(folder / "val", {"dog": 1})
    with refused(DataError, "'dog'", "train"):
        opened(folder, "val")


def test_one_folder_is_split_by_seed(tmp_path: Path) -> None:
    root = fill(tmp_path / "one", {"ant": 20, "bee": 31, "cat": 2, "dog": 1})
    train, val = opened(root, apart=True), opened(root, "val")
    assert np.bincount(val.labels(), minlength=4).tolist() == [2, 3, 1, 0]
    assert np.bincount(train.labels()).tolist() == [18, 28, 1, 1]
    assert not set(files(train)) & set(files(val))
    again, other = opened(root, "val"), opened(root, "val", seed=1)
    assert (files(again), again.digest) == (files(val), val.digest)
    assert files(other) != files(val)
    assert other.digest != val.digest
    whole = opened(root)
    assert (len(whole), whole.told) == (54, "There is no train/ and val/ folder: all 54 images are used.")
    assert "a tenth of each class is held out by seed 0, and 6 of 54 images are used for evaluation" in val.told
    assert opened(root, "val", apart=True).digest == val.digest


@pytest.mark.parametrize(
    ("bee", "seen", "judged", "lost"),
    [
        ({"train": 3, "val": 2}, 3, 2, ""),
        ({"train": 3}, 3, 0, ""),
        ({"train": 3, "val": 2, "more": 1}, 3, 2, "Images in neither part of their class are left out (1, as bee/"),
    ],
)
def test_parts_may_lie_in_each_class(bee: dict[str, int], seen: int, judged: int, lost: str, tmp_path: Path) -> None:
    fill(tmp_path / "ant", {"train": 3, "val": 2})
    fill(tmp_path / "bee", bee)
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert np.bincount(train.labels(), minlength=2).tolist() == [3, seen]
    assert np.bincount(val.labels(), minlength=2).tolist() == [2, judged]
    assert all("/val/" in name for name in files(val))
    assert val.class_names == train.class_names == ("ant", "bee")
    assert "in each class" in val.told
    assert lost in val.told
    assert ("neither" in val.told) is bool(lost)


@pytest.mark.parametrize(
    ("names", "below", "told"),
    [("su", "xy", True), ("su", "01", True), ("su", ("images",), False), ("stuv", "xy", False)],
)
def test_twins_of_other_names_are_told(names: str, below: Sequence[str], told: bool, tmp_path: Path) -> None:
    for name in names:
        fill(tmp_path / name, dict.fromkeys(below, 2))
    assert (f"s and u hold folders of the same names ({', '.join(below)})" in opened(tmp_path).told) is told


def test_a_class_that_is_empty_in_training_counts_in_evaluation(folder: Path) -> None:
    (folder / "train" / "eel").mkdir()
    assert [opened(folder, part, num_classes=4).class_names[3] for part in ("train", "val")] == ["eel", "eel"]


def test_classes_that_are_called_train_and_test_are_classes(tmp_path: Path) -> None:
    root = fill(tmp_path / "vehicles", {"car": 3, "test": 3, "train": 3})
    assert opened(root).class_names == ("car", "test", "train")


@pytest.mark.parametrize("suffix", ["JPEG", "jfif", "jpe", "GIF", "WEBP", "tif"])
def test_pictures_of_any_usual_suffix(suffix: str, folder: Path) -> None:
    for path in folder.rglob("*.png"):
        Image.open(path).save(path.with_suffix(f".{suffix}"), format=None if suffix not in ("jfif", "jpe") else "JPEG")
        path.unlink()
    images = opened(folder)
    assert sum(len(y) for _, y in images.batches(4)) == 15


def test_hidden_files_and_what_is_no_image_are_passed_over(folder: Path) -> None:
    digest = opened(folder).digest
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "ant" / "._000.png").write_bytes(b"x")
    (folder / "train" / "ant" / "notes.txt").write_text("x")
    (folder / "train" / "ant" / "photo.HEIC").write_bytes(b"x")
    (folder / "val" / "ant" / "photo.avif").write_bytes(b"x")
    assert "(1 .heic)" in opened(folder).told
    assert (len(opened(folder)), opened(folder).digest) == (15, digest)


def test_images_may_lie_deeper_inside_a_class(folder: Path) -> None:
    fill(folder / "train" / "ant", {"inner": 2})
    assert np.bincount(opened(folder).labels()).tolist() == [6, 5, 6]


def test_digest_follows_names_labels_and_sizes(folder: Path) -> None:
    first = opened(folder)
    assert re.fullmatch(r"[0-9a-f]{16}", first.digest)
    assert opened(folder, pretrained_cfg=GREY).digest == first.digest
    assert opened(folder, "val").digest != first.digest
    path = folder / "train" / "ant" / "000.png"
    path.write_bytes(path.read_bytes() + b"x")
    changed = opened(folder).digest
    assert changed != first.digest
    path.rename(path.with_name("other.png"))
    assert opened(folder).digest not in (changed, first.digest)


@pytest.fixture
def damaged(folder: Path) -> Path:
    whole = (folder / "train" / "bee" / "001.png").read_bytes()
    (folder / "train" / "ant" / "000.png").write_bytes(b"")
    (folder / "train" / "bee" / "001.png").write_bytes(whole[: len(whole) // 2])
    (folder / "train" / "cat" / "005.png").write_text("not an image")
    return folder


NAMES = ("train/ant/000.png", "train/bee/001.png", "train/cat/005.png")


def test_unreadable_images_are_named_and_left_out(damaged: Path) -> None:
    images = opened(damaged)
    assert (len(images), images.skipped) == (15, ())
    for _ in range(2):
        labels = torch.cat([y for _, y in images.batches(4)])
        assert np.bincount(labels).tolist() == [3, 4, 5]
        assert images.skipped == NAMES
    with refused(DataError, NAMES[0]):
        images.image(0)


def test_a_batch_of_unreadable_images_alone_is_an_error(damaged: Path) -> None:
    images = opened(damaged)
    for _ in range(2):
        with refused(DataError, NAMES[0], "2 images"):
            list(images.batches(4, indices=[0, 5]))


def test_a_training_loader_goes_on_with_the_next_image(damaged: Path) -> None:
    images = opened(damaged)
    dataset = images.dataset(training_transform(COLOUR))
    labels = torch.cat([y for _, y in DataLoader(dataset, batch_size=4)])
    assert np.bincount(labels).tolist() == [5, 5, 5]  # after the last comes the first
    assert images.skipped == NAMES
    for path in damaged.rglob("*.png"):
        path.write_bytes(b"")
    with refused(DataError, "15"):
        opened(damaged).dataset(training_transform(COLOUR))[0]


def test_a_dataset_can_be_sent_to_a_worker_process(folder: Path) -> None:
    dataset = pickle.loads(pickle.dumps(opened(folder).dataset(training_transform(COLOUR))))
    x, y = dataset[14]
    assert (x.shape, y) == ((3, 16, 16), 2)
    with pytest.raises(IndexError):
        dataset[15]
