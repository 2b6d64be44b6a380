import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from upvit_core.files import as_csv, digest, zipped


def test_a_digest_is_the_beginning_of_the_sha256_over_all_parts() -> None:
    whole = hashlib.sha256("aé".encode() + b"\x00\x01").hexdigest()
    assert digest(["a", "é", memoryview(b"\x00"), b"\x01"], 64) == whole
    assert digest("aé".encode() + b"\x00\x01") == whole[:16]


@pytest.mark.parametrize("compress", [False, True])
def test_a_zip_holds_the_files_below_the_folder_and_no_links(tmp_path: Path, compress: bool) -> None:
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.txt").write_text("a" * 1000)
    (folder / "inner" / "b.txt").write_text("b")
    (folder / "link").symlink_to(tmp_path)
    (folder / "file-link").symlink_to(folder / "a.txt")
    content = zipped(folder, "out", compress=compress)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["out/a.txt", "out/inner/b.txt"]
        assert archive.read("out/a.txt") == b"a" * 1000
    assert (len(content) < 1000) == compress


def test_csv_has_a_header_and_plain_numbers() -> None:
    table = {"name": np.array(["a, b", "c"]), "value": np.array([1.5, 2.0], np.float32), "list": [1, 2]}
    assert as_csv(table) == 'name,value,list\r\n"a, b",1.5,1\r\nc,2.0,2\r\n'
    with pytest.raises(ValueError, match="shorter"):
        as_csv({"a": [1, 2], "b": [1]})
