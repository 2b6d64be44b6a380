"""Labels by name, number or order; the parts of a data set by any name; lists of classes; what is said of it."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.errors import refused
from tests.support.pictures import files, fill, opened
from upvit_core.data.classes import order_classes
from upvit_core.data.splits import part_of
from upvit_core.errors import DataError
from upvit_core.models.checkpoint import load_model, save_model

DESCRIBED = (
    "goldfish, Carassius auratus",
    "crane",
    "Cardigan, Cardigan Welsh corgi",
    "cardigan",
    "projectile, missile",
)


@pytest.mark.parametrize(
    ("names", "folders", "indices"),
    [
        (("zebra", "ant", "bee"), ("ant", "bee", "zebra"), (1, 2, 0)),
        (("T-shirt/top", "Ankle boot", "Bag"), ("ankle_boot", "BAG", "t shirt-top"), (1, 2, 0)),
        (("Café", "C++", "C"), ("C", "C++", "café"), (2, 1, 0)),
        (DESCRIBED, ("Carassius_auratus", "cardigan", "Cardigan Welsh corgi", "missile"), (0, 3, 2, 4)),
        (("n02110185", "n01440764", "n01443537"), ("goldfish", "siberian_husky", "tench"), (2, 0, 1)),
        (("n01443537 goldfish", "n01440764 tench"), ("n01440764", "n01443537-goldfish"), (1, 0)),
        (("cat", "dog", "eel"), ("001.Dog", "002.Cat"), (1, 0)),
        (("cat", "dog", "eel"), ("dog", "masks", "cat", "other"), (1, None, 0, None)),
        (tuple(str(i) for i in range(9, -1, -1)), ("0", "3", "9"), (9, 6, 0)),
        (("猫", "犬"), ("犬", "猫"), (1, 0)),
        (("crème brûlée", "café"), ("cafe", "Creme Brulee"), (1, 0)),
        (("Food & Drink", "Rock and Roll"), ("rock & roll", "food_and_drink"), (1, 0)),
        (("dog", "cat"), ("cats", "Dogs"), (1, 0)),
        (("English springer", "tench"), ("n01440764", "N02102040"), (1, 0)),
    ],
)
def test_folders_are_matched_to_classes_by_name(
    names: Sequence[str], folders: Sequence[str], indices: tuple[int | None, ...]
) -> None:
    order = order_classes(folders, [[name] for name in names], len(names))
    assert (order.indices, order.names, order.known) == (indices, tuple(names), True)
    assert "by name" in order.told
    assert all(name in order.told for name, index in zip(folders, indices, strict=True) if index is None)


@pytest.mark.parametrize(
    ("folders", "count", "indices", "words"),
    [
        (("n01443537", "n02110185"), 1000, (1, 250), "2 of 2 folders are named as classes of ImageNet"),
        (("Siberian husky", "goldfish"), 1000, (250, 1), "as the model names none"),
        (("0", "1", "10", "11", "2"), 12, (0, 1, 10, 11, 2), "folder k is class k"),
        (("1", "10", "2"), 3, (0, 2, 1), "natural order of the folders (1, 2, 10)"),
        (("c1", "c10", "c2"), 3, (0, 2, 1), "the model names no classes"),
        (("c1", "c10", "c2"), None, (0, 2, 1), ""),
    ],
)
def test_without_names_numbers_and_then_natural_order_count(
    folders: Sequence[str], count: int | None, indices: tuple[int, ...], words: str
) -> None:
    order = order_classes(folders, None, count)
    assert order.indices == indices
    assert words in order.told


def test_names_that_do_not_tell_are_named() -> None:
    order = order_classes(("ant", "bee", "cat"), [["x"], ["y"], ["cat"]], 3)
    assert (order.indices, order.known) == ((0, 1, 2), False), "one name alone may be chance"
    assert "natural order of the folders (ant, bee, cat)" in order.told
    assert "x, y, cat" in order.told
    with pytest.raises(DataError, match=r"4 classes .*ant, bee, cat, dog.* 3 outputs \(x, y, z\)"):
        order_classes(("ant", "bee", "cat", "dog"), [["x"], ["y"], ["z"]], 3)
    words = ["ant", "bee", "no such thing"]
    with pytest.raises(DataError, match="1000 outputs"):
        order_classes(words, None, 1000)


def test_empty_and_foreign_folders_shift_no_label(folder: Path) -> None:
    before = opened(folder, num_classes=3)
    (folder / "train" / "aardvark").mkdir()
    (folder / "train" / ".hidden").mkdir()
    fill(folder / "train", {"annotations": 2, "@eaDir": 1, "$RECYCLE.BIN": 1, "System Volume Information": 1})
    after = opened(folder, num_classes=3)
    assert (after.digest, after.labels().tolist()) == (before.digest, before.labels().tolist())
    assert opened(folder, num_classes=4).labels().min() == 1, "an empty class counts where the others are too few"


def test_labels_files_and_digest_follow_the_names(folder: Path) -> None:
    before, names = opened(folder, "val"), ("Cat", "eel", "ANT", "bee")
    fill(folder / "val", {"masks": 2})
    images = opened(folder, "val", class_names=names, num_classes=4)
    assert images.class_names == names
    assert images.labels().tolist() == [2, 2, 3, 3, 0, 0]
    assert files(images) == files(before)
    assert images.digest != before.digest
    assert "left out: masks" in images.told
    described = {"label_names": ["n1", "n2", "n3"], "label_descriptions": {"n1": "cat", "n2": "bee", "n3": "ant"}}
    cfg = {"input_size": (3, 16, 16), **described}
    assert opened(folder, "val", pretrained_cfg=cfg, num_classes=3).labels().tolist() == [2, 2, 1, 1, 0, 0]


def test_a_model_that_is_saved_keeps_the_wnids_beside_their_words(tmp_path: Path) -> None:
    wnids = [f"n{number:08d}" for number in range(10)]
    words = {wnid: f"word {wnid[-1]}" for wnid in wnids}
    demo = load_model("demo")
    cfg = {**demo.pretrained_cfg, "label_names": wnids, "label_descriptions": words}
    for folder in (tmp_path / "first", tmp_path / "second"):
        save_model(
            demo.model, folder, shape=demo.shape, pretrained_cfg=cfg, name="a", class_names=tuple(words.values())
        )
        again = load_model(str(folder))
        assert again.class_names == tuple(words.values())
        cfg = again.pretrained_cfg
    fill(tmp_path / "images" / "val", dict.fromkeys((wnids[7], wnids[2]), 1))
    images = opened(tmp_path / "images", "val", class_names=again.class_names, pretrained_cfg=cfg, num_classes=10)
    assert images.labels().tolist() == [2, 7]


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (
            "train",
            "Train TRAINING train_set trainset train2018 ILSVRC2012_img_train my-photos-train TrainImages trainval",
        ),
        ("val", "Val valid validation_data val2018 imagenet-val dev"),
        ("test", "test_set TEST testing"),
        (None, "trainer valley latest device train_test"),
    ],
)
def test_parts_are_known_by_any_usual_name(part: str | None, names: str) -> None:
    assert {part_of(name) for name in names.split()} == {part}


@pytest.mark.parametrize(
    ("train", "val", "beside"),
    [
        ("Train", "Val", ()),
        ("train2018", "val2018", ()),
        ("photos_train", "photos_test", ()),
        ("train_set", "test_set", ("docs",)),
        ("Data/CLS-LOC/train", "Data/CLS-LOC/val", ("Annotations/CLS-LOC", "ImageSets")),
        ("seg_train/seg_train", "seg_test/seg_test", ("seg_pred",)),
        ("set/TRAIN", "set/TEST", ("pictures of the README",)),
        ("images/train", "images/val", ("labels/train", "labels/val")),
    ],
)
def test_parts_are_no_classes(train: str, val: str, beside: Sequence[str], tmp_path: Path) -> None:
    fill(tmp_path / train, {"ant": 3, "bee": 3})
    fill(tmp_path / val, {"ant": 1, "bee": 1}, seed=50)
    for name in beside:
        (tmp_path / name).mkdir(parents=True)
    if beside:
        fill(tmp_path / beside[0], {"masks": 1})
    for split, folder, count in (("train", train, 6), ("val", val, 2)):
        images = opened(tmp_path, split, apart=True)
        assert (images.class_names, len(images)) == (("ant", "bee"), count)
        assert all(name.startswith(folder) for name in files(images))


@pytest.mark.parametrize("name", ["val", "train", "fewshot2_train", "photos"])
def test_one_folder_is_used_for_what_it_is(name: str, tmp_path: Path) -> None:
    root = fill(tmp_path / name, dict.fromkeys("abcde", 2))
    train, val = opened(root), opened(root, "val")
    assert (len(train), len(val)) == (10, 10 if name == "val" else 5)
    assert f"{len(val)} " in val.told
    (tmp_path / "set").mkdir()
    root.rename(tmp_path / "set" / name)
    assert len(opened(tmp_path / "set", "val")) == len(val)
    single = fill(tmp_path / "single", dict.fromkeys("abc", 1))
    assert len(opened(single, "val")) == 3
    with pytest.raises(DataError, match="one image a class"):
        opened(single, apart=True)


def flat(root: Path) -> Path:
    """`train/` of two classes, and `val/` as ImageNet's is distributed."""
    fill(root / "train", {"n01440764": 2, "n01443537": 2})
    (root / "val").mkdir()
    for number in range(1, 5):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    return root


@pytest.mark.parametrize(
    ("name", "header", "line"),
    [
        ("LOC_val_solution.csv", "ImageId,PredictionString\n", "ILSVRC2012_val_{0:08d},{1} 85 1 499 272\n"),
        ("val.txt", "", "ILSVRC2012_val_{0:08d}.JPEG {1}\n"),
        ("val_annotations.txt", "", "ILSVRC2012_val_{0:08d}.JPEG\t{1}\t0\t32\t44\t62\n"),
        ("labels.tsv", "file\tclass\n", "val/ILSVRC2012_val_{0:08d}.JPEG\t{1}\n"),
        ("synset_labels.txt", "", "{1}\n"),
        ("numbers.csv", "id,label\n", "ILSVRC2012_val_{0:08d},{2}\n"),
    ],
)
@pytest.mark.parametrize("place", ["", "val", "val.tar"])
def test_a_list_beside_flat_images_gives_their_classes(
    name: str, header: str, line: str, place: str, tmp_path: Path
) -> None:
    root, wnids = flat(tmp_path / "imagenet"), ("n01440764", "n01443537")
    lines = [line.format(number, wnids[number % 2], number % 2) for number in (2, 1, 4, 3)]
    (root / name).write_text(header + "".join(sorted(lines) if "ILSVRC" in line else [lines[1], lines[0]] * 2))
    if place == "val.tar":
        with tarfile.open(root / place, "w") as tar:
            tar.add(root / "val", "val")
    images = opened(root / place, "val", num_classes=1000)
    assert images.labels().tolist() == [1, 0, 1, 0]
    assert name in images.told


def test_flat_images_whose_classes_are_not_known_are_told(tmp_path: Path) -> None:
    root = flat(tmp_path / "imagenet")
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n1\n2\n")
    for place, words in (("", "ground_truth.txt has numbers"), ("val", "development kit"), ("none", "directly in")):
        if place == "none":
            (root / "ILSVRC2012_validation_ground_truth.txt").unlink()
        with refused(DataError, "4 images lie directly in", words, "LOC_val_solution.csv"):
            opened(root / "val" if place else root, "val")
    assert len(opened(root, labelled=False)) == 4
    unlabelled = opened(root / "val", labelled=False, num_classes=1000)
    assert (len(unlabelled), unlabelled.told) == (4, "There is no train/ and val/ folder: all 4 images are used.")


def test_a_test_folder_without_classes_beside_train_is_left_out_and_told(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"ant": 10, "bee": 10})
    fill(tmp_path, {"test": 3})
    train, val = (opened(tmp_path, split, apart=True) for split in ("train", "val"))
    assert (len(train), len(val)) == (18, 2)
    assert "test/ has images without classes and is left out" in val.told
    assert not {*files(train)} & {*files(val)}
    (tmp_path / "test" / "labels.csv").write_text("".join(f"{i:03}.png,ant\n" for i in range(3)))
    assert len(opened(tmp_path, "val")) == 3


RAMP = np.linspace(0, 1, 256).reshape(16, 16)


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        ((RAMP * 65535).astype(np.uint16), "png"),
        ((RAMP * 65535).astype(np.uint16), "tiff"),
        ((RAMP * 65535).astype(np.int32), "tiff"),
        ((RAMP * 2**30 - 2**29).astype(np.int32), "tiff"),
        (RAMP.astype(np.float32), "tiff"),
        ((RAMP * 255).astype(np.float32), "tiff"),
        ((RAMP * 7 - 3).astype(np.float32), "tiff"),
    ],
)
def test_deep_images_keep_their_range(values: np.ndarray, suffix: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "deep", {"a": 1, "b": 1})
    Image.fromarray(values).save(root / "a" / f"deep.{suffix}")
    (root / "a" / "000.png").unlink()
    images = opened(
        root, pretrained_cfg={"input_size": (3, 16, 16), "mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_pct": 1.0}
    )
    assert images.notes == images.told
    x = next(images.batches(1))[0][0]
    assert np.allclose(x.numpy(), RAMP, atol=0.004)
    assert "16 bits" in images.notes
    assert images.image(0).mode == "RGB"
