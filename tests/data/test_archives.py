"""Archives are read like the folders they hold."""

import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.errors import refused
from tests.support.pictures import COLOUR, files, fill, opened, picture
from upvit_core.data import archives
from upvit_core.data.disk import cache_folder
from upvit_core.errors import DataError


def pack(folder: Path, archive: Path, mode: str, top: str) -> Path:
    if archive.suffix == ".zip":
        bare = shutil.make_archive(str(archive.with_suffix("")), "zip", folder)
        with zipfile.ZipFile(bare) as whole, zipfile.ZipFile(f"{bare}.tmp", "w", zipfile.ZIP_DEFLATED) as zipped:
            for name in whole.namelist():
                zipped.writestr(f"{top}/{name}", whole.read(name))
        return Path(f"{bare}.tmp").rename(archive)
    with tarfile.open(archive, mode) as tar:
        tar.add(folder, arcname=top)
    return archive


@pytest.mark.parametrize(
    ("ending", "mode"),
    [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz"), (".tar.bz2", "w:bz2"), (".tar.xz", "w:xz"), (".zip", "")],
)
@pytest.mark.parametrize("top", [".", "images/inner"])
def test_an_archive_is_read_like_its_folder(ending: str, mode: str, top: str, folder: Path, tmp_path: Path) -> None:
    for name in (".hidden.png", "._x.heic"):
        (folder / "train" / name).write_bytes(b"x")
    archive = pack(folder, tmp_path / f"set{ending}", mode, top)
    for split in ("train", "val"):
        ours, plain = opened(archive, split), opened(folder, split)
        assert (ours.class_names, ours.told) == (plain.class_names, plain.told)
        assert ours.labels().tolist() == plain.labels().tolist()
        for (x, _), (wanted, _) in zip(ours.batches(5), plain.batches(5), strict=True):
            assert torch.equal(x, wanted)
    names = sorted(path.name for path in cache_folder("archives").iterdir())
    assert len(names) == (1 if ending == ".tar" else 2)
    assert not any(name.endswith(".tmp") for name in names)


def test_an_archive_without_splits_is_split_by_seed(tmp_path: Path) -> None:
    root = fill(tmp_path / "one", {"ant": 20, "bee": 30})
    archive = pack(root, tmp_path / "one.tar.gz", "w:gz", "one")
    assert np.bincount(opened(archive, "val").labels()).tolist() == [2, 3]


def test_an_archive_is_read_once_and_again_when_it_changes(folder: Path, tmp_path: Path) -> None:
    archive = pack(folder, tmp_path / "set.tar.gz", "w:gz", ".")
    opened(archive)
    for index in cache_folder("archives").glob("*.npz"):
        index.write_bytes(b"damaged")
    opened(archive)
    before = {path: path.stat().st_mtime_ns for path in cache_folder("archives").iterdir()}
    opened(archive)
    assert {path: path.stat().st_mtime_ns for path in cache_folder("archives").iterdir()} == before
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


@pytest.mark.parametrize(("ending", "mode"), [(".tar", "w"), (".tar.gz", "w:gz")])
def test_links_and_archives_in_an_archive(ending: str, mode: str, tmp_path: Path) -> None:
    """A tar of one tar a class, as ILSVRC2012_img_train.tar; images that are links to others."""
    root = fill(tmp_path / "set", {"n01440764": 3, "n01443537": 4})
    for folder in sorted(root.iterdir()):
        first = folder / "hard.png"
        os.link(min(folder.iterdir()), first)
        (folder / "soft.png").symlink_to("hard.png")
        (folder / "broken.png").symlink_to("none.png")
        pack(folder, root / f"{folder.name}.tar", "w", ".")
    plain = opened(root)
    with tarfile.open(tmp_path / f"train{ending}", mode) as tar:
        for inner in sorted(root.glob("*.tar")):
            tar.add(inner, inner.name)
    images = opened(tmp_path / f"train{ending}")
    assert images.class_names == ("n01440764", "n01443537")
    assert files(images) == [name for name in files(plain) if "broken" not in name]
    for index, name in enumerate(files(images)):
        assert np.array_equal(images.image(index), np.asarray(Image.open(root / name).convert("RGB")))


def test_no_room_to_unpack_is_said_before_it_is_tried(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(folder, tmp_path / "set.tar.gz", "w:gz", ".")
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda place: SimpleNamespace(free=100))
    monkeypatch.setattr(archives, "_index", lambda *given: pytest.fail("unpacking was tried"))
    with refused(DataError, "0.0 GiB are free", "make room"):
        opened(archive)


def test_a_folder_of_archives_says_what_to_give(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "imagenet").mkdir()
    pack(folder, tmp_path / "imagenet" / "ILSVRC2012_img_train.tar", "w", ".")
    with refused(DataError, "ILSVRC2012_img_train.tar", "unpack"):
        opened(tmp_path / "imagenet")


def test_a_cut_archive_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    archive = pack(folder, tmp_path / "set.tar.gz", "w:gz", ".")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with refused(DataError, "set.tar.gz", "truncated"):
        opened(archive)
    assert list(cache_folder("archives").iterdir()) == []
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
