"""Pictures that would have a program run, hang the reader or fill the memory are skipped, and what is meant is read."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from upvit_core.data.disk import open_folder, read_picture
from upvit_core.data.opening import open_images
from upvit_core.data.pictures import decode
from upvit_core.errors import DataError

CFG = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def folder_of(tmp_path: Path) -> Path:
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (40 * number, 9, 9)).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


@pytest.mark.parametrize("where", ["folder", "archive"])
def test_postscript_is_not_handed_to_its_interpreter(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: asked.append(args))
    data = folder_of(tmp_path)
    (data / "a" / "0.png").write_bytes(EPS)
    if where == "archive":
        with tarfile.open(tmp_path / "data.tar", "w") as tar:
            tar.add(data, "data")
        data = tmp_path / "data.tar"
    images = open_images(str(data), "train", pretrained_cfg=CFG, num_classes=2)
    read = sum(len(labels) for _, labels in images.batches(4))
    assert not asked
    assert read == 5
    assert len(images.skipped) == 1


@pytest.mark.timeout(60)
def test_a_pipe_a_device_and_a_circle_of_links_do_not_hang(tmp_path: Path) -> None:
    data = folder_of(tmp_path)
    os.mkfifo(data / "a" / "pipe.png")
    (data / "a" / "zero.png").symlink_to("/dev/zero")
    (data / "b" / "round").symlink_to(data)
    for name in ("a/pipe.png", "a/zero.png"):
        with pytest.raises(OSError, match="regular"):
            read_picture(data / name)
    assert len(list(open_folder(data).images("b"))) == 3


def test_a_picture_of_too_many_pixels_is_refused_by_its_header() -> None:
    content = io.BytesIO()
    Image.new("1", (9000, 9000)).save(content, "PNG")
    with pytest.raises(OSError, match="9000 by 9000"):
        decode(content.getvalue())


def test_an_archive_with_an_endless_member_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upvit_core.data.archives.LARGEST_FILE", 1000)
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("train/a/0.png")
        member.size = 5000
        tar.addfile(member, io.BytesIO(bytes(5000)))
    with pytest.raises(DataError, match=r"train/a/0\.png"):
        open_images(str(tmp_path / "x.tar.gz"), "train", pretrained_cfg=CFG, num_classes=2)


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "tiff", "webp", "ppm"])
def test_the_formats_that_are_meant_are_read(kind: str, tmp_path: Path) -> None:
    pixels = np.full((8, 8, 3), 77, np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"x.{kind}")
    assert abs(int(np.asarray(decode((tmp_path / f"x.{kind}").read_bytes()))[4, 4, 0]) - 77) < 4
