"""The form of every error that is told to a person."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(kind: type[Exception] | tuple[type[Exception], ...], *words: str) -> Iterator[None]:
    """Fails unless the block raises an error of this kind: one sentence, a question only at its end, with `words`."""
    with pytest.raises(kind) as error:
        yield
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".") or re.search(r"did you mean [^.?]+\?$", text), text
    assert not re.search(r"[.!?] [A-Z]", text.removesuffix(".")), text
    for word in words:
        assert word in text
