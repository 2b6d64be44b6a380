"""Digests, zip files and tables as CSV, each made in one place."""

import csv
import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

Content = str | bytes | memoryview
Json = dict[str, Any]
"""An object of a JSON file."""
Values = Mapping[str, Any]
"""Settings by name as timm and transformers hold them, such as a `pretrained_cfg`."""


def digest(content: Content | Iterable[Content], length: int = 16) -> str:
    """First `length` hex digits of the SHA-256 over the content, or over several joined; text counts as UTF-8.

    Names of files that are no UTF-8 count as their bytes.
    """
    sha = hashlib.sha256()
    for part in (content,) if isinstance(content, Content) else content:
        sha.update(part.encode(errors="surrogateescape") if isinstance(part, str) else part)
    return sha.hexdigest()[:length]


def write_zip(target: Path | BinaryIO, folder: Path, name: str, *, compress: bool = False) -> None:
    """Write all files below a folder, links left out, as one folder `name`."""
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(target, "w", method, compresslevel=1) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                archive.write(path, f"{name}/{path.relative_to(folder)}")


def zipped(folder: Path, name: str, *, compress: bool = False) -> bytes:
    """The zip file of `write_zip` in memory."""
    content = io.BytesIO()
    write_zip(content, folder, name, compress=compress)
    return content.getvalue()


def as_csv(table: Mapping[str, Iterable[object]]) -> str:
    """Columns of equal length by name as CSV, with a header."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table)
    # NumPy's own scalars would be written with their type.
    columns = (getattr(column, "tolist", lambda column=column: column)() for column in table.values())
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue()
