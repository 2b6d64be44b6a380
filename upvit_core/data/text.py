"""Text as blocks of tokens, read by the model's own tokenizer: what an image set is to a ViT.

Block i of a split is tokens [i·T, (i+1)·T); its labels are the same one further on. The last twentieth of a text is the
evaluation part, so that no sentence is in both.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from upvit_core.data.images import ImageSet
from upvit_core.errors import DataError
from upvit_core.files import Values, digest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VAL_SHARE = 0.05


@dataclass(frozen=True)
class TokenSet(ImageSet):
    """Blocks of `context` tokens; `class_names` are the vocabulary. It has no source of images and no pixels."""

    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False, compare=False)
    context: int = 0
    tokenizer: str = field(default="", repr=False, compare=False)

    def __len__(self) -> int:
        return max(len(self.tokens) - 1, 0) // self.context

    @property
    def notes(self) -> str:
        return ""

    @property
    def skipped(self) -> tuple[str, ...]:
        return ()

    def labels(self) -> np.ndarray:
        """The first next token of each block: there is no class to balance by."""
        return self.tokens[1 :: self.context][: len(self)].astype(np.int64)

    def answers(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return self.pairs([int(i) for i in indices])[1].flatten().numpy()

    def readable(self, indices: Iterable[int]) -> np.ndarray:
        return np.array(list(indices), dtype=np.int64)

    @property
    def answer_names(self) -> tuple[str, ...]:
        return tuple(self.token(number) for number in range(len(self.class_names)))

    def block(self, index: int, shift: int = 0) -> np.ndarray:
        """Block `index`, begun `shift` tokens later where the text is long enough: T + 1 tokens."""
        start = min(index * self.context + shift, len(self.tokens) - self.context - 1)
        return self.tokens[start : start + self.context + 1]

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | np.ndarray | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Token ids (B, T) and the token that follows each (B, T), both int64."""
        order = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        for first in range(0, len(order), batch_size):
            yield self.pairs([int(i) for i in order[first : first + batch_size]], device=device)

    def pairs(
        self, indices: Sequence[int], shift: int = 0, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        both = torch.from_numpy(np.stack([self.block(i, shift) for i in indices]).astype(np.int64)).to(device)
        return both[:, :-1], both[:, 1:]

    def token(self, number: int) -> str:
        """A token as it is read: a space as ␣, the end of a line as ⏎."""
        read = _reader(self.tokenizer).decode([number])
        if not read or "\ufffd" in read:  # a part of a letter
            return self.class_names[number]
        return read.replace(" ", "␣").replace("\n", "⏎")

    def passage(self, block: int, place: int, most: int = 12) -> str:
        """The tokens of a block up to `place`, as text; at most so many."""
        ids = self.block(block)[max(place + 1 - most, 0) : place + 1]
        return _reader(self.tokenizer).decode([int(i) for i in ids])


@lru_cache(maxsize=4)
def _reader(tokenizer: str) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(tokenizer)


def open_text(spec: str, split: str, cfg: Values, num_classes: int | None = None) -> TokenSet:
    """One split of a text file, or of a folder of `.txt` files in the order of their names.

    Raises DataError where there is no text, too little of it, or the tokenizer has another vocabulary.
    """
    if not cfg["tokenizer"]:
        raise DataError("The model's folder has no tokenizer.json, by which text is read; put its own there.")
    path = Path(spec).expanduser()
    try:
        files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
        text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{spec} is not readable text ({error}); give a UTF-8 file or a folder of .txt files."
        ) from error
    if not text.strip():
        raise DataError(f"{spec} holds no text; give a UTF-8 file or a folder of .txt files.")
    tokens, vocabulary = _tokens(text, str(cfg["tokenizer"]))
    if num_classes is not None and len(vocabulary) > num_classes:
        raise DataError(f"The tokenizer knows {len(vocabulary)} tokens and the model {num_classes}; give its own.")
    context = int(cfg["context"])
    cut = len(tokens) - max(round(VAL_SHARE * len(tokens)), context + 1)
    part = tokens[:cut] if split == "train" else tokens[cut:]
    if len(part) <= context:
        raise DataError(f"{spec} gives {len(tokens)} tokens, too few for blocks of {context}; give a longer text.")
    nothing: Any = None
    about = (path.name, split, vocabulary, digest([part.tobytes(), str(context)]))
    return TokenSet(*about, nothing, nothing, tokens=part, context=context, tokenizer=str(cfg["tokenizer"]))


# A tokenizer is a program of its file's: Rust ends the whole process where one asks for too much memory.
CHILD = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (%d, %d))
from tokenizers import Tokenizer
order = json.load(sys.stdin)
reader = Tokenizer.from_str(order["tokenizer"])
lines = order["text"].splitlines(keepends=True)
ids = [i for start in range(0, len(lines), 1000) for i in reader.encode("".join(lines[start : start + 1000])).ids]
names = [name for name, _ in sorted(reader.get_vocab().items(), key=lambda item: item[1])]
reader.decode(ids[:100])
json.dump([ids, names], sys.stdout)
"""
CHILD_BYTES, CHILD_SECONDS = 8 << 30, 600


@lru_cache(maxsize=4)
def _tokens(text: str, tokenizer: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Token ids of a text and the vocabulary, read in a process of its own. Raises DataError."""
    command = [sys.executable, "-c", CHILD % (CHILD_BYTES, CHILD_BYTES)]
    order = json.dumps({"tokenizer": tokenizer, "text": text})
    try:
        done = subprocess.run(command, input=order, capture_output=True, text=True, timeout=CHILD_SECONDS)
        ids, names = json.loads(done.stdout)
        return np.array(ids, np.int32), tuple(map(str, names))
    except (ValueError, TypeError, OSError, OverflowError, subprocess.TimeoutExpired) as error:
        raise DataError(
            "The model's tokenizer.json cannot read this text: it is malformed; restore it from the model's source."
        ) from error
