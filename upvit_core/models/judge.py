"""What a model reads, what it answers, and what it is judged by: images, classes and top-1; or a text, next tokens and
perplexity.

Every view takes words, units and what there is to show from here, so that none asks which architecture it shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from upvit_core.errors import UnsupportedModelError
from upvit_core.models.shape import ModelShape


@dataclass(frozen=True)
class Judge:
    """`key` is the number's name in records. Means are over `sample`s (images; tokens), a pass reads `item`s (images;
    blocks of text), each a row of `pieces`, and says one of `answers`. `data` is what must be given, `source` where it
    may lie. `result` is an `Evaluation`, or has the same fields.

    has_pictures: inputs can be shown as pictures. has_classes: the head can be another, or left out, so that the model
    is taken to other images or exported as a backbone, and as ONNX.
    """

    key: Literal["top1", "perplexity"]
    name: str
    axis: str
    sign: str
    digits: int
    sample: str
    item: str
    items: str
    piece: str
    pieces: str
    answer: str
    answers: str
    data: str
    them: str
    source: str
    task: str
    more_is_better: bool
    has_pictures: bool
    has_classes: bool

    @property
    def samples(self) -> str:
        return f"{self.sample}s"

    @property
    def inputs(self) -> str:
        """Name of the field that asks what to measure on."""
        return self.data.removeprefix("a ").capitalize()

    @property
    def wanted(self) -> str:
        """What is missing, and where to give it."""
        return f"{self.data}; give {self.them} on Model"

    @property
    def in_percent(self) -> bool:
        return self.sign == " %"

    @property
    def nats(self) -> str:
        """`nats an image` or `nats a token`."""
        return f"nats a{'n' * (self.sample[0] in 'aeiou')} {self.sample}"

    def value(self, result: Any) -> float:
        return float(getattr(result, self.key))

    def interval(self, result: Any) -> tuple[float, float]:
        """95 % interval of the value."""
        low, high = getattr(result, f"{self.key}_interval")
        return low, high

    def told(self, value: float, digits: int | None = None) -> str:
        """`91.7 %` or `16.74`."""
        return f"{value:,.{self.digits if digits is None else digits}f}{self.sign}"

    def range_told(self, result: Any) -> str:
        """`91.2 – 92.3`."""
        low, high = self.interval(result)
        return f"{low:,.{self.digits}f} – {high:,.{self.digits}f}"

    def gap(self, change: float) -> str:
        """`+1.3 points` or `-2.41`."""
        return f"{change:+,.{self.digits}f}{' points' if self.in_percent else ''}"


IMAGES = Judge(
    "top1", "Top-1", "top-1, %", " %", 1, sample="image", item="image", items="images", piece="patch", pieces="patches",
    answer="class", answers="classes", data="images", them="them",
    source="A folder of class folders, an archive of one, or a timm data set.", task="classify it",
    more_is_better=True, has_pictures=True, has_classes=True,
)  # fmt: skip
TEXT = Judge(
    "perplexity", "Perplexity", "perplexity (less is better)", "", 2, sample="token", item="block of text",
    items="blocks of text", piece="token", pieces="tokens", answer="next token", answers="next tokens", data="a text",
    them="it", source="A UTF-8 file, or a folder of .txt files.", task="continue each of its tokens",
    more_is_better=False, has_pictures=False, has_classes=False,
)  # fmt: skip


def judge_of(shape: ModelShape) -> Judge:
    return TEXT if shape.is_language else IMAGES


def judge_of_rows(rows: Iterable[Mapping[str, Any]]) -> Judge:
    """Of a run, by what its metrics.jsonl holds."""
    return TEXT if any("perplexity" in row for row in rows) else IMAGES


def refuse_language(shape: ModelShape, what: str, instead: str) -> None:
    """Raises UnsupportedModelError where a model reads text, and `what` is defined for images alone."""
    if not judge_of(shape).has_classes:
        raise UnsupportedModelError(f"{what}, and {shape.name} reads text; {instead}.")
