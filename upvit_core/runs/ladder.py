"""The sizes at which an elastic run is measured, from whole to the narrowest."""

from collections.abc import Callable
from math import isnan
from pathlib import Path
from typing import Any

from torch import nn

from upvit_core.atomic import read_lines
from upvit_core.evaluation import Evaluation
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.pruning.elastic import cut_size, ladder_sizes
from upvit_core.records.elastic import Elastic
from upvit_core.training.distillation import Row

KEY = "ladder"


class Ladder:
    """Cuts and measures the sizes of one elastic model; `speeds` are images/s of each, measured once."""

    def __init__(self, elastic: Elastic, metrics: Path):
        self.elastic = elastic
        self.shares = elastic.origin.ladder
        self.shapes = ladder_sizes(elastic.shape, self.shares)
        known: list[Row] = [row for row in read_lines(metrics)[0] if KEY in row]
        self.speeds = [size["images_per_s"] for size in known[0][KEY]] if known else [0.0] * len(self.shapes)

    def cut(self, model: nn.Module) -> list[nn.Module]:
        """Every size of the full-width `model`, as it is trained."""
        return [cut_size(model, self.elastic, after) for after in self.shapes]

    def rows(
        self, model: nn.Module, whole: Evaluation, evaluate: Callable[[nn.Module], Evaluation]
    ) -> list[dict[str, Any]]:
        """For each size the share removed, its costs, its speed and how well it does; `whole` is that of `model`."""
        rows = []
        for share, after, thin, speed in zip(self.shares, self.shapes, self.cut(model), self.speeds, strict=True):
            result = evaluate(thin) if share else whole
            costs = {"params": count_parameters(after), "macs": count_macs(after)}
            row = {"removed": share, **costs, "images_per_s": speed, "kl_teacher": result.kl}
            rows.append(row if isnan(result.top1) else row | {"top1": result.top1})
        return rows
