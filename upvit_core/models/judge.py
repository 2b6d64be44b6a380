"""What a model is judged by, and in which words: top-1 over images, or perplexity over the tokens of a text.

Every view takes its name, number and unit from here, so that none asks which architecture it shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from upvit_core.errors import UnsupportedModelError
from upvit_core.models.shape import ModelShape


@dataclass(frozen=True)
class Judge:
    """`key` is the number's name in records. Means are over `sample`s (images; tokens), a pass reads `item`s (images;
    blocks of text). `result` is an `Evaluation`, or has the same fields."""

    key: Literal["top1", "perplexity"]
    name: str
    axis: str
    sign: str
    digits: int
    sample: str
    item: str
    more_is_better: bool

    @property
    def samples(self) -> str:
        return f"{self.sample}s"

    @property
    def items(self) -> str:
        return self.item.replace("block", "blocks") if "block" in self.item else f"{self.item}s"

    @property
    def inputs(self) -> str:
        """Name of the field that asks what to measure on."""
        return "Text" if self.key == "perplexity" else "Images"

    @property
    def source(self) -> str:
        if self.key == "perplexity":
            return "A UTF-8 file, or a folder of .txt files."
        return "A folder of class folders, an archive of one, or a timm data set."

    @property
    def nats(self) -> str:
        """`nats an image` or `nats a token`."""
        return f"nats a{'n' * (self.sample[0] in 'aeiou')} {self.sample}"

    def value(self, result: Any) -> float:
        return float(getattr(result, self.key))

    def interval(self, result: Any) -> tuple[float, float]:
        """95 % interval of the value."""
        return result.top1_interval if self.key == "top1" else result.perplexity_interval

    def told(self, value: float, digits: int | None = None) -> str:
        """`91.7 %` or `16.74`."""
        return f"{value:,.{self.digits if digits is None else digits}f}{self.sign}"

    def range_told(self, result: Any) -> str:
        """`91.2 – 92.3`."""
        low, high = self.interval(result)
        return f"{low:,.{self.digits}f} – {high:,.{self.digits}f}"

    def gap(self, change: float) -> str:
        """`+1.3 points` or `-2.41`."""
        return f"{change:+,.{self.digits}f}{' points' if self.key == 'top1' else ''}"


IMAGES = Judge("top1", "Top-1", "top-1, %", " %", 1, "image", "image", more_is_better=True)
TEXT = Judge(
    "perplexity", "Perplexity", "perplexity a token, less is better", "", 2, "token", "block of text",
    more_is_better=False,
)  # fmt: skip


def judge_of(shape: ModelShape) -> Judge:
    return TEXT if shape.is_language else IMAGES


def refuse_language(shape: ModelShape, what: str, instead: str) -> None:
    """Raises UnsupportedModelError where a model reads text, and `what` is defined for images alone."""
    if shape.is_language:
        raise UnsupportedModelError(f"{what}, and {shape.name} reads text; {instead}.")
