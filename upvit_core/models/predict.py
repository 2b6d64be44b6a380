"""Models run on batches in eval mode, in halves where memory runs out."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from upvit_core.errors import DataError
from upvit_core.models.device import exact_float32
from upvit_core.out_of_memory import in_halves

Progress = Callable[[int], None]
Batches = Iterable[tuple[Tensor, Tensor]]
"""Images (B, C, H, W) and labels (B,), or blocks of text and their next tokens."""
Result = TypeVar("Result")


def outputs_of(model: nn.Module, x: Tensor) -> Tensor:
    """Outputs (N, outputs) in float32; every token of a text is a row."""
    logits: Tensor = model(x).float().flatten(0, -2)
    return logits.cpu() if logits.device.type == "mps" else logits  # a device without float64


def run_batches(
    models: Sequence[nn.Module],
    batches: Batches,
    compute: Callable[[Tensor, Tensor, int], Result],
    progress: Progress | None,
) -> list[Result]:
    """`compute(images, labels, samples before)` for every batch, or for its halves where memory runs out.

    The models are in eval mode meanwhile, and get their own mode back.
    """
    device = next(models[0].parameters()).device
    modes = [model.training for model in models]
    results: list[Result] = []
    images = samples = 0

    def part(rows: range) -> Result:
        inside = slice(rows.start, rows.stop)
        return compute(x[inside], y[inside].flatten(), samples + y[: rows.start].numel())

    try:
        for model in models:
            model.eval()
        for x, y in batches:
            x = x.to(device, non_blocking=True)
            with exact_float32():
                results += (result for _, result in in_halves(part, range(len(x))))
            images, samples = images + len(x), samples + y.numel()
            if progress is not None:
                progress(images)
    finally:
        for model, training in zip(models, modes, strict=True):
            model.train(training)
    if not results:
        raise DataError("There is no image to evaluate on; choose a data set whose evaluation part is not empty.")
    return results


@torch.no_grad()
def predict(model: nn.Module, batches: Batches, *, progress: Progress | None = None) -> tuple[Tensor, Tensor]:
    """Outputs (N, outputs) in float32 and labels (N,) of every batch, on the CPU; the model's mode is restored.

    `progress` receives the number of images done; raise `Cancelled` in it to stop.
    """
    parts = run_batches([model], batches, lambda x, y, before: (outputs_of(model, x).cpu(), y.cpu()), progress)
    logits, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return logits, labels.long()
