"""A model's own tokenizer is a program of its file's: it is read where it can end nothing."""

import json
from pathlib import Path

import pytest

from upvit_core.data.text import open_text
from upvit_core.errors import DataError

pytest.importorskip("tokenizers")
WORDS = {"one": 0, "two": 1, "three": 2, "?": 3}
GOOD = {
    "version": "1.0",
    "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "?"},
    "pre_tokenizer": {"type": "Whitespace"},
}
GROWS = {"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 1000}


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("one two three four " * 50)
    return str(path)


def test_ids_and_names_are_the_tokenizer_s(text: str) -> None:
    found = open_text(text, "train", {"tokenizer": json.dumps(GOOD), "context": 4})
    assert found.class_names == tuple(WORDS)
    assert found.tokens[:8].tolist() == [0, 1, 2, 3] * 2


@pytest.mark.parametrize(
    "change",
    [{"model": {}}, {"model": None}, {"version": "9"}, {"pre_tokenizer": 3},
     {"normalizer": {"type": "Sequence", "normalizers": [GROWS] * 6}}],
)  # fmt: skip
def test_a_malformed_one_is_told_and_ends_no_process(text: str, change: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json cannot read this text"):
        open_text(text, "train", {"tokenizer": json.dumps(GOOD | change), "context": 4})
