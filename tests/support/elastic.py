"""Elastic models of tiny ones."""

from functools import cache

import numpy as np
import torch

from tests.support.small_run import CFG
from tests.support.tiny import TensorProxy, images, tiny
from upvit_core.models.build import adapt, build_model
from upvit_core.pruning.basis import collect_statistics
from upvit_core.pruning.basis.neurons import elimination_scores
from upvit_core.pruning.elastic.full_width import full_width_state, norm_scales


@cache
def full_width(variant="class token", dtype=torch.float64, count=24):
    """The source, the full-width model, its shape, its scales, the statistics and the FFN orders; read-only."""
    source, shape = tiny(variant, dtype)
    stats = collect_statistics(adapt(source, shape), TensorProxy(images(count, dtype)), batch_size=8)
    order = {b: elimination_scores(stats, b).argsort(descending=True) for b in range(shape.depth)}
    model = build_model(shape).to(dtype)
    model.load_state_dict(full_width_state(stats, order))
    return source, model.eval().requires_grad_(False), shape, norm_scales(stats), stats, order


class FakeImages:
    """An image set held in memory, as far as proxy sets need one."""

    name, digest, told = "noise", "noise", ""

    def __init__(self, count=20):
        self.tensor = images(count, torch.float32)

    def __len__(self):
        return len(self.tensor)

    def batches(self, batch_size, *, indices=None, device="cpu"):
        chosen = self.tensor if indices is None else self.tensor[torch.as_tensor(np.asarray(indices))]
        return TensorProxy(chosen).batches(batch_size, device)


def tiny_elastic(variant="class token", n=20):
    """An elastic model made from a tiny one by the way of every caller."""
    from upvit_core.models.checkpoint import LoadedModel
    from upvit_core.models.recognition import Recognition
    from upvit_core.models.tensors import digest_of
    from upvit_core.pruning.elastic import make_elastic

    model, shape = tiny(variant, torch.float32)
    digest = digest_of(model.state_dict(), shape)
    loaded = LoadedModel(model, shape, "tiny", "", digest, True, Recognition("a test"), dict(CFG), None)
    return loaded, make_elastic(loaded, FakeImages(), n=n)


def demo_folder(folder):
    """An elastic folder of the demo, ordered by few images."""
    from upvit_core.api import load_model, make_elastic, save_model

    save_model(make_elastic(load_model("demo"), "demo", images=60), folder)
    return folder
