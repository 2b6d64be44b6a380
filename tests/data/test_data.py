"""Image sets of every kind, what they give, and what they refuse."""

import io
import pickle
import re
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import functional as TF

from upvit_core.data import ImageSet, archives, eval_transform, open_images, proxy_indices, training_transform
from upvit_core.data.images import Pixels
from upvit_core.errors import DataError

COLOUR = {
    "input_size": (3, 16, 16), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "crop_pct": 0.8,
    "interpolation": "bicubic",
}  # fmt: skip
GREY = {"input_size": (1, 28, 28), "mean": (0.286,), "std": (0.353,), "crop_pct": 1.0, "interpolation": "bicubic"}
CLASSES = ("ant", "bee", "cat")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(seed: int, size: tuple[int, int] = (20, 24), mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def fill(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture(seed + 1000 * number + index).save(folder / name / f"{index:03}.png")
    return folder


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


def opened(spec: object, split: str = "train", **arguments: object) -> ImageSet:
    return open_images(str(spec), split, **{"pretrained_cfg": COLOUR, **arguments})  # type: ignore[arg-type]


def files(images: ImageSet) -> list[str]:
    return [images.source.file_name(index) for index in range(len(images))]


def assert_one_sentence(error: pytest.ExceptionInfo[DataError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert not re.search(r"[.!?] [A-Z]", text.removesuffix(".")), text
    for word in words:
        assert word in text


# Folders


def test_folder_has_the_files_and_labels_of_torchvisions_image_folder(folder: Path) -> None:
    for split in ("train", "val"):
        images, reference = opened(folder, split), datasets.ImageFolder(folder / split)
        assert images.class_names == tuple(reference.classes)
        assert images.labels().tolist() == reference.targets
        assert [folder / name for name in files(images)] == [Path(path) for path, _ in reference.samples]
        assert np.array_equal(images.image(1), reference[1][0])


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
    with pytest.raises(DataError) as error:
        opened(folder, "val")
    assert_one_sentence(error, "'dog'", "train")


def test_one_folder_is_split_by_seed(tmp_path: Path) -> None:
    root = fill(tmp_path / "one", {"ant": 20, "bee": 31, "cat": 2, "dog": 1})
    train, val = opened(root), opened(root, "val")
    assert np.bincount(val.labels(), minlength=4).tolist() == [2, 3, 1, 0]
    assert np.bincount(train.labels()).tolist() == [18, 28, 1, 1]
    assert not set(files(train)) & set(files(val))
    again, other = opened(root, "val"), opened(root, "val", seed=1)
    assert (files(again), again.digest) == (files(val), val.digest)
    assert files(other) != files(val)
    assert other.digest != val.digest


def test_classes_that_are_called_train_and_test_are_classes(tmp_path: Path) -> None:
    root = fill(tmp_path / "vehicles", {"car": 3, "test": 3, "train": 3})
    assert opened(root).class_names == ("car", "test", "train")


def test_hidden_files_and_what_is_no_image_are_passed_over(folder: Path) -> None:
    digest = opened(folder).digest
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "ant" / "._000.png").write_bytes(b"x")
    (folder / "train" / "ant" / "notes.txt").write_text("x")
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


# Unreadable images


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
    with pytest.raises(DataError) as error:
        images.image(0)
    assert_one_sentence(error, NAMES[0])


def test_a_batch_of_unreadable_images_alone_is_an_error(damaged: Path) -> None:
    images = opened(damaged)
    for _ in range(2):
        with pytest.raises(DataError) as error:
            list(images.batches(4, indices=[0, 5]))
        assert_one_sentence(error, NAMES[0], "2 images")


def test_a_training_loader_goes_on_with_the_next_image(damaged: Path) -> None:
    images = opened(damaged)
    dataset = images.dataset(training_transform(COLOUR))
    labels = torch.cat([y for _, y in DataLoader(dataset, batch_size=4)])
    assert np.bincount(labels).tolist() == [5, 5, 5]  # after the last comes the first
    assert images.skipped == NAMES
    for path in damaged.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        opened(damaged).dataset(training_transform(COLOUR))[0]
    assert_one_sentence(error, "15")


def test_a_dataset_can_be_sent_to_a_worker_process(folder: Path) -> None:
    dataset = pickle.loads(pickle.dumps(opened(folder).dataset(training_transform(COLOUR))))
    x, y = dataset[14]
    assert (x.shape, y) == ((3, 16, 16), 2)
    with pytest.raises(IndexError):
        dataset[15]


# Archives


def pack(folder: Path, archive: Path, mode: str, top: str) -> Path:
    with tarfile.open(archive, mode) as tar:
        tar.add(folder, arcname=top)
    return archive


@pytest.mark.parametrize(
    ("ending", "mode"),
    [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz"), (".tar.bz2", "w:bz2"), (".tar.xz", "w:xz")],
)
@pytest.mark.parametrize("top", [".", "images/inner"])
def test_an_archive_is_read_like_its_folder(ending: str, mode: str, top: str, folder: Path, tmp_path: Path) -> None:
    (folder / "train" / ".hidden.png").write_bytes(b"x")
    archive = pack(folder, tmp_path / f"set{ending}", mode, top)
    for split in ("train", "val"):
        ours, plain = opened(archive, split), opened(folder, split)
        assert ours.class_names == plain.class_names
        assert ours.labels().tolist() == plain.labels().tolist()
        for (x, _), (wanted, _) in zip(ours.batches(5), plain.batches(5), strict=True):
            assert torch.equal(x, wanted)
    names = sorted(path.name for path in archives.cache_folder().iterdir())
    assert len(names) == (1 if ending == ".tar" else 2)
    assert not any(name.endswith(".tmp") for name in names)


def test_an_archive_without_splits_is_split_by_seed(tmp_path: Path) -> None:
    root = fill(tmp_path / "one", {"ant": 20, "bee": 30})
    archive = pack(root, tmp_path / "one.tar.gz", "w:gz", "one")
    assert np.bincount(opened(archive, "val").labels()).tolist() == [2, 3]


def test_an_archive_is_read_once_and_again_when_it_changes(folder: Path, tmp_path: Path) -> None:
    archive = pack(folder, tmp_path / "set.tar.gz", "w:gz", ".")
    opened(archive)
    before = {path: path.stat().st_mtime_ns for path in archives.cache_folder().iterdir()}
    opened(archive)
    assert {path: path.stat().st_mtime_ns for path in archives.cache_folder().iterdir()} == before
    fill(folder / "train" / "ant", {"more": 3})
    pack(folder, archive, "w:gz", ".")
    assert len(opened(archive)) == 18


def test_names_in_an_archive_reach_no_other_folder(folder: Path, tmp_path: Path) -> None:
    archive = pack(folder, tmp_path / "set.tar.gz", "w:gz", ".")
    buffer = io.BytesIO()
    picture(0).save(buffer, "PNG")
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        with tarfile.open(archive) as whole:
            for member in whole:
                tar.addfile(member, whole.extractfile(member) if member.isfile() else None)
        for name in ("../../escaped.png", str(tmp_path / "absolute.png")):
            member = tarfile.TarInfo(name)
            member.size = len(buffer.getvalue())
            tar.addfile(member, io.BytesIO(buffer.getvalue()))
        link = tarfile.TarInfo("train/ant/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    images = opened(tmp_path / "evil.tar.gz")
    assert files(images) == [name.removeprefix("./") for name in files(opened(folder))]
    found = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert "escaped.png" not in found
    assert "absolute.png" not in found


def test_a_cut_archive_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    archive = pack(folder, tmp_path / "set.tar.gz", "w:gz", ".")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(DataError) as error:
        opened(archive)
    assert_one_sentence(error, "set.tar.gz", "truncated")
    assert list(archives.cache_folder().iterdir()) == []
    archive.write_bytes(b"no archive at all")
    with pytest.raises(DataError, match="damaged"):
        opened(archive)


def test_cifar10_from_its_archive(shared_data: Path) -> None:
    archive = shared_data / "cifar10.tar.gz"
    cfg = {**COLOUR, "input_size": (3, 32, 32), "crop_pct": 1.0}
    for split, count in (("train", 50_000), ("val", 10_000)):
        images = opened(archive, split, pretrained_cfg=cfg, num_classes=10)
        assert len(images) == count
        assert np.bincount(images.labels()).tolist() == [count // 10] * 10
    assert images.class_names[:3] == ("airplane", "automobile", "bird")
    with tarfile.open(archive) as tar:
        member = next(member for member in tar if member.name.endswith("test/airplane/0000.jpg"))
        first = np.asarray(Image.open(tar.extractfile(member)))
    assert np.array_equal(images.image(0), first)
    x, _ = next(images.batches(1))
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert torch.equal(x[0], (torch.from_numpy(first).permute(2, 0, 1) / 255 - mean) / std)


# Demo, and named sets


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
    with pytest.raises(DataError) as error:
        opened("demo", root=str(tmp_path))
    assert_one_sentence(error, "train.npz", "damaged")


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


# Refusals


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
    with pytest.raises(DataError) as error:
        opened(spec)
    assert_one_sentence(error, *words)


def test_a_named_set_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError) as error:
        opened("torch/no_such_set", root=str(tmp_path))
    assert_one_sentence(error, "no_such_set")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    with pytest.raises(DataError) as error:
        opened("torch/cifar10", root=str(tmp_path))
    assert_one_sentence(error, "no network", str(tmp_path))


def test_folders_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "ant").mkdir(parents=True)
    (tmp_path / "hollow" / "bee").mkdir()
    (tmp_path / "file.txt").write_text("x")
    fill(tmp_path / "single", {"ant": 3})
    fill(tmp_path / "half" / "train", {"ant": 2, "bee": 2})
    for spec, split, words in (
        (tmp_path / "empty", "train", ("empty", "no class folders")),
        (tmp_path / "hollow", "train", ("hollow", "no images")),
        (tmp_path / "single", "train", ("one class (ant)",)),
        (tmp_path / "half", "val", ("train/", "val/ or test/")),
        (tmp_path / "file.txt", "train", ("file.txt", "archive")),
        (folder, "test", ("'test'", "val")),
    ):
        with pytest.raises(DataError) as error:
            opened(spec, split)
        assert_one_sentence(error, *words)


def test_classes_must_be_those_of_the_model(folder: Path) -> None:
    with pytest.raises(DataError) as error:
        opened(folder, num_classes=1000)
    assert_one_sentence(error, "3 classes", "1000")
    assert len(opened(folder, num_classes=3)) == 15


def test_a_model_of_four_channels_has_no_images(folder: Path) -> None:
    with pytest.raises(DataError) as error:
        opened(folder, pretrained_cfg={**COLOUR, "input_size": (4, 16, 16)})
    assert_one_sentence(error, "4 channels")


# Proxy sets


class Labels:
    """A source of labels alone."""

    def __init__(self, counts: list[int]):
        self.labels = np.repeat(np.arange(len(counts)), counts)
        self.class_names, self.digest = tuple(map(str, counts)), ""


def labelled(counts: list[int]) -> ImageSet:
    source = Labels(counts)
    return ImageSet("set", "train", source.class_names, "", source=source, pixels=Pixels(source, COLOUR))  # type: ignore[arg-type]


def test_proxy_is_drawn_by_seed_without_touching_global_generators() -> None:
    images = labelled([300, 300, 400])
    np.random.seed(0)
    before, torch_before = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    first, same, other = (proxy_indices(images, 200, seed) for seed in (1, 1, 2))
    assert np.array_equal(np.random.get_state()[1], before)
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert len(set(first.tolist())) == 200
    assert np.array_equal(proxy_indices(images, 50, 1), first[:50])
    assert sorted(proxy_indices(images, 1000, 1)) == list(range(1000))


def test_balanced_proxy_takes_as_equally_as_it_can() -> None:
    images = labelled([100, 7, 50])
    for n, counts in ((30, [10, 10, 10]), (60, None), (157, [100, 7, 50])):
        chosen = proxy_indices(images, n, 3, balanced=True)
        assert len(set(chosen.tolist())) == n
        found = np.bincount(images.labels()[chosen], minlength=3)
        if n == 30:
            assert found[1] == 7
            assert sorted(found[[0, 2]]) == [11, 12]
        elif counts:
            assert found.tolist() == counts
        else:
            assert found[1] == 7
            assert abs(int(found[0]) - int(found[2])) <= 1
    assert np.bincount(images.labels()[proxy_indices(images, 6, 3, balanced=True)]).tolist() == [2, 2, 2]
    assert not np.array_equal(proxy_indices(images, 30, 3, balanced=True), proxy_indices(images, 30, 4, balanced=True))


@pytest.mark.parametrize("n", [0, -1, 11])
def test_a_proxy_larger_than_the_set_is_refused(n: int) -> None:
    with pytest.raises(DataError) as error:
        proxy_indices(labelled([5, 5]), n, 0)
    assert_one_sentence(error, str(n), "10")


# Transforms


def test_grey_model_reads_colour_images_and_the_other_way_round() -> None:
    colour, grey = picture(0, (28, 28)), picture(1, (16, 16), "L")
    x = eval_transform(GREY)(colour)
    assert torch.equal(x, (TF.to_tensor(colour.convert("L")) - GREY["mean"][0]) / GREY["std"][0])
    assert eval_transform({**COLOUR, "crop_pct": 1.0})(grey).shape == (3, 16, 16)
    palette = picture(2, mode="P")
    assert eval_transform(COLOUR)(palette).shape == (3, 16, 16)


def test_means_of_three_channels_serve_a_grey_model() -> None:
    x = eval_transform({**GREY, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)})(picture(0, (28, 28), "L"))
    assert torch.allclose(x, (TF.to_tensor(picture(0, (28, 28), "L")) - 0.2) / 0.5)


def test_small_images_are_shifted_and_flipped_and_nothing_else() -> None:
    image = picture(0, (28, 28), "L")
    plain = eval_transform(GREY)(image)[0]
    black = -GREY["mean"][0] / GREY["std"][0]
    padded = torch.nn.functional.pad(plain, [2] * 4, value=black)
    shifted = [padded[row : row + 28, column : column + 28] for row in range(5) for column in range(5)]
    allowed = torch.stack([*shifted, *(each.flip(1) for each in shifted)])
    transform = training_transform(GREY)
    found = set()
    for seed in range(60):
        torch.manual_seed(seed)
        match = (allowed - transform(image)[0]).abs().amax((1, 2)) < 1e-5
        assert match.sum() == 1
        found.add(int(match.nonzero()))
    assert len(found) > 20


def test_small_images_of_another_size_are_resized_first() -> None:
    assert training_transform(GREY)(picture(0, (40, 60))).shape == (1, 28, 28)


def test_large_images_are_cropped_at_random_by_timm() -> None:
    cfg = {**COLOUR, "input_size": (3, 64, 48)}
    transform = training_transform(cfg, scale=(0.5, 1.0), color_jitter=0.3, auto_augment="rand-m5", re_prob=0.5)
    x = transform(picture(0, (90, 120)))
    assert (x.shape, x.dtype) == ((3, 64, 48), torch.float32)
    assert "RandomResizedCropAndInterpolation" in repr(training_transform(cfg))
    assert "ColorJitter" not in repr(training_transform(cfg))
