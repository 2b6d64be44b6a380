"""The account of a model's file: everything recognised and everything assumed, in sentences."""

from __future__ import annotations

from dataclasses import dataclass, replace

from upvit_core.models.keys import Found
from upvit_core.models.tensors import listed


@dataclass(frozen=True)
class Recognition:
    """The account of one model: the library of its names, prefix, choice among several, heads, images, and reasons.

    `heads` and `images` are clauses ("as config.json says"); "" where nothing is known yet. `config` tells of a
    configuration that was left out, `size` of an image size that was assumed.
    """

    form: str
    prefix: str = ""
    chosen: str = ""
    is_average: bool = False
    others: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    heads: str = ""
    heads_assumed: bool = False
    images: str = ""
    images_assumed: bool = False
    config: str = ""
    size: str = ""
    assumes: str = ""

    @classmethod
    def of(cls, found: Found) -> Recognition:
        """From what was found in a file."""
        return cls(
            found.form.name,
            found.prefix,
            found.chosen,
            found.is_average,
            found.others,
            found.left_out,
            assumes="; ".join(filter(None, (found.form.assumes, found.note))),
        )

    def assuming(self, clause: str) -> Recognition:
        """The account with one more assumption."""
        return replace(self, assumes="; ".join(filter(None, (self.assumes, clause))))

    @property
    def weights(self) -> str:
        """The choice among several weights; "" where a file has one."""
        if not self.others:
            return ""
        average = "the average of the weights (EMA)" if self.is_average else "the weights"
        return f"{average} {self.chosen} taken, {listed(list(self.others))} left"

    @property
    def assumptions(self) -> tuple[str, ...]:
        """Sentences about what a file does not say, or says twice; empty where everything is known."""
        said = (
            (self.weights, "--weights NAME takes another"),
            (self.heads_assumed and f"heads: {self.heads}", "--num-heads or --head-dim says otherwise"),
            (self.images_assumed and f"normalisation: {self.images}", "--mean and --std say otherwise"),
            (self.size, "--img-size HEIGHT,WIDTH says otherwise"),
            (self.left_out and f"left out, as no part of the model: {listed(list(self.left_out))}", ""),
            (self.config, ""),
            (self.assumes, ""),
        )
        return tuple(f"{text[0].upper()}{text[1:]}{f' ({hint})' if hint else ''}." for text, hint in said if text)

    @property
    def line(self) -> str:
        """Everything in one line."""
        parts = (
            self.form,
            self.prefix.strip("./") and f"prefix {self.prefix.rstrip('./')}",
            self.weights,
            self.heads and f"heads {self.heads}",
            self.images and f"normalisation {self.images}",
            self.size,
            self.left_out and f"left out {listed(list(self.left_out))}",
            self.config,
            self.assumes,
        )
        return " · ".join(part for part in parts if part)
