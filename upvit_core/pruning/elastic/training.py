"""Sizes of an elastic student in training: the widest, the narrowest and drawn ones in each step (the sandwich rule).

Sandwich rule: Yu & Huang, Universally Slimmable Networks, ICCV 2019. A drawn size lies along the ladder or around it:
one share for everything, uniform between whole and narrowest, then each of residual, attention and FFN moved by a
normal of its own. The weights of a size are linear maps of the full-width ones (`moments.Solver`), so every size starts
repaired, and its gradient reaches all full-width weights that it depends on.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from upvit_core.models.build import build_model
from upvit_core.models.drop_path import set_drop_path
from upvit_core.pruning.elastic.moments import Solver
from upvit_core.pruning.elastic.prefix import size_of
from upvit_core.records.elastic import Elastic
from upvit_core.records.ratios import Ratios
from upvit_core.records.shape import ModelShape
from upvit_core.training.settings import DistillSettings

SPREAD = 0.1
"""Standard deviation of a component's share around that of all."""
GRID = 32
"""Drawn shares are multiples of 1 over this, so that few shapes are built."""


class ElasticSizes:
    """The sizes of one elastic model: `settings.sizes` a step, drawn by `settings.seed` and step."""

    def __init__(self, elastic: Elastic, settings: DistillSettings):
        self.elastic, self.shape, self.settings = elastic, elastic.shape, settings
        self.most = max(elastic.origin.ladder)

    def wrap(self, student: nn.Module) -> nn.Module:
        return ElasticForward(student, self.elastic, self.settings.drop_path)

    def draw(self, step: int) -> Sequence[ModelShape]:
        random = np.random.default_rng((self.settings.seed, step, 3))
        sizes = [self.shape, size_of(self.shape, Ratios.equal(self.most))]
        for _ in range(self.settings.sizes - 2):
            shares = random.uniform(0, self.most) + SPREAD * random.standard_normal(3)
            near = np.clip(np.round(shares * GRID) / GRID, 0, self.most).tolist()
            sizes.append(size_of(self.shape, Ratios(*near)))
        return sizes


class ElasticForward(nn.Module):
    """A full-width model, run at any of its sizes."""

    def __init__(self, full: nn.Module, elastic: Elastic, drop_path: float = 0.0):
        super().__init__()
        self.full, self.shape = full, elastic.shape
        self.solver = Solver(elastic, next(full.parameters()).detach())
        self._thin = lru_cache(64)(lambda after: _hollow(after, drop_path))

    def forward(self, images: Tensor, after: ModelShape) -> Tensor:
        if after == self.shape:
            return self.full(images)
        thin = self._thin(after).train(self.training)
        with torch.autocast(images.device.type, enabled=False):  # the maps are applied in full precision
            state = self.solver.state(dict(self.full.named_parameters()), after)
        return functional_call(thin, state, (images,))


def _hollow(after: ModelShape, drop_path: float) -> nn.Module:
    """A model without weights."""
    thin = build_model(after, device="meta")
    set_drop_path(thin, drop_path)
    return thin
