"""The model's output on each image with and without one channel (one term of Eq. 1)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from upvit_core.errors import ScoresError
from upvit_core.importance.criterion import frozen
from upvit_core.models.adapter import Adapter
from upvit_core.models.output import Gaussian
from upvit_core.records.scores import expected_widths


@dataclass(frozen=True)
class Removal:
    """Logits (N, classes) of the whole model and of the model without one channel, and their KL (N,) in nats."""

    before: Tensor
    after: Tensor
    kl: Tensor

    @property
    def changed(self) -> Tensor:
        """Images (N,) whose likeliest class changes."""
        return self.before.argmax(-1) != self.after.argmax(-1)


@dataclass(frozen=True)
class Streams:
    """The whole model on some images, kept so that each removal computes only the blocks in which it shows.

    before: logits (N, classes). blocks: of every batch, the stream before each block, (B, tokens, D) in a plain ViT.
    """

    before: Tensor
    blocks: tuple[tuple[Tensor, ...], ...]


def streams(
    adapter: Adapter,
    batches: Iterable[tuple[Tensor, Tensor]],
    progress: Callable[[int], None] | None = None,
    *,
    most_bytes: int = 1 << 27,
) -> Streams | None:
    """Run the whole model on batches of images (B, C, H, W); None where what must be kept exceeds `most_bytes`.

    `progress` receives the number of images done; raise `Cancelled` in it to stop.
    """
    device = next(adapter.model.parameters()).device
    before, blocks, taken = [], [], 0
    with frozen(adapter.model), torch.inference_mode():
        for images, _ in batches:
            kept = [adapter.embed(images.to(device))]
            for block in range(adapter.shape.depth - 1):
                kept.append(adapter.run_block(block, kept[-1]))
            taken += sum(x.nbytes for x in kept)
            if taken > most_bytes:
                return None
            before.append(adapter.run_from(adapter.shape.depth - 1, kept[-1]).cpu())
            blocks.append(tuple(kept))
            if progress is not None:
                progress(sum(map(len, before)))
    return Streams(torch.cat(before), tuple(blocks))


def remove_one(
    adapter: Adapter,
    batches: Iterable[tuple[Tensor, Tensor]] | Streams,
    key: str,
    channel: int,
    progress: Callable[[int], None] | None = None,
) -> Removal:
    """Remove one channel of `key`, exactly as Eq. 1 does, on batches of images (B, C, H, W) or on their `streams`.

    `progress` receives the number of images done; raise `Cancelled` in it to stop. Raises ScoresError for a channel
    that the model does not have.
    """
    widths = expected_widths(adapter.shape)
    if key not in widths or not 0 <= channel < widths[key]:
        have = f"has {widths[key]} channels there" if key in widths else f"has no part {key!r}"
        raise ScoresError(f"Channel {channel} of {key} cannot be removed: {adapter.shape.name} {have}.")
    device = next(adapter.model.parameters()).device
    chosen = torch.tensor([channel], device=device)
    first = adapter.first_block(key)
    before: list[Tensor] = []
    after: list[Tensor] = []
    with frozen(adapter.model), torch.inference_mode():
        if isinstance(batches, Streams):
            starts: Iterable[Tensor] = (blocks[first] for blocks in batches.blocks)
        else:
            starts = _starts(adapter, batches, first, before)
        for x in starts:
            after.append(adapter.logits_without(key, x, chosen)[0].cpu())
            if progress is not None:
                progress(sum(map(len, after)))
    whole = batches.before if isinstance(batches, Streams) else torch.cat(before)
    thinner = torch.cat(after)
    output = adapter.output or Gaussian.of(whole)
    return Removal(whole, thinner, output.kl(output.reference(whole), thinner))


def _starts(
    adapter: Adapter, batches: Iterable[tuple[Tensor, Tensor]], first: int, before: list[Tensor]
) -> Iterator[Tensor]:
    """The stream before block `first` of every batch; the logits of the whole model are added to `before`."""
    device = next(adapter.model.parameters()).device
    for images, _ in batches:
        x = adapter.embed(images.to(device))
        for block in range(first):
            x = adapter.run_block(block, x)
        before.append(adapter.run_from(first, x).cpu())
        yield x
