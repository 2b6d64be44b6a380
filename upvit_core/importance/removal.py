"""Remove one channel and nothing else: what the model says about each image with and without it (one term of Eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from upvit_core.errors import ScoresError
from upvit_core.importance.criterion import frozen, kl_divergence, log_softmax
from upvit_core.importance.scores import expected_widths
from upvit_core.models.adapter import Adapter


@dataclass(frozen=True)
class Removal:
    """Logits (N, classes) of the whole model and of the model without one channel, and their KL (N,) in nats."""

    before: Tensor
    after: Tensor
    kl: Tensor

    @property
    def changed(self) -> Tensor:
        """Images (N,) whose likeliest class is another one."""
        return self.before.argmax(-1) != self.after.argmax(-1)


def remove_one(
    adapter: Adapter,
    batches: Iterable[tuple[Tensor, Tensor]],
    key: str,
    channel: int,
    progress: Callable[[int], None] | None = None,
) -> Removal:
    """Remove one channel of `key`, exactly as Eq. 1 does, on batches of images (B, C, H, W).

    `progress` receives the number of images done; raise `Cancelled` in it to stop. Raises ScoresError for a channel
    that the model does not have.
    """
    widths = expected_widths(adapter.shape)
    if key not in widths or not 0 <= channel < widths[key]:
        have = f"has {widths[key]} channels there" if key in widths else f"has no part {key!r}"
        raise ScoresError(f"Channel {channel} of {key} cannot be removed: {adapter.shape.name} {have}.")
    device = next(adapter.model.parameters()).device
    chosen = torch.tensor([channel], device=device)
    before, after = [], []
    with frozen(adapter.model), torch.inference_mode():
        for images, _ in batches:
            x = adapter.embed(images.to(device))
            before.append(adapter.run_from(0, x).cpu())
            after.append(_without(adapter, x, key, chosen).cpu())
            if progress is not None:
                progress(sum(map(len, before)))
    whole, thinner = torch.cat(before), torch.cat(after)
    return Removal(whole, thinner, kl_divergence(log_softmax(whole), thinner))


def _without(adapter: Adapter, x: Tensor, key: str, channel: Tensor) -> Tensor:
    for b in range(adapter.first_block(key)):
        x = adapter.run_block(b, x)
    return adapter.logits_without(key, x, channel)[0]
