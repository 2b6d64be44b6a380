"""Work that processes share: `torchrun … -m tests.support.shared_work MODEL IMAGES FOLDER` leaves each's results."""

import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from upvit_core.data import ProxySet, draw_proxy
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import load_model
from upvit_core.models.images import images_for
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.pruning.basis import collect_statistics
from upvit_core.pruning.basis.scores import score_directions
from upvit_core.pruning.depth import score_blocks
from upvit_core.pruning.prune import cut_and_record
from upvit_core.ranks import rank
from upvit_core.records.basis import Basis

IMAGES = 60
CUTS = (("directions", True), ("channels", True))


def work(model: Path, data: Path) -> dict[str, np.ndarray]:
    """Statistics, scores of directions by both criteria, repaired cuts and depth scores in float64; and, as `images of`
    each, how many images this process read."""
    loaded = load_model(str(model))
    loaded.model.double()
    images = images_for(loaded, data, "train")
    found: dict[str, np.ndarray] = {}
    read = 0
    original = ProxySet.batches

    def counted(self: ProxySet, batch_size: int, device: str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal read
        for x, y in original(self, batch_size, device):
            read += len(x)
            yield x.double(), y

    def took(name: str) -> None:
        nonlocal read
        found[f"images of {name}"], read = np.array(read), 0

    with mock.patch.object(ProxySet, "batches", counted):
        stats = collect_statistics(adapt(loaded.model, loaded.shape), draw_proxy(images, IMAGES, 0))
        found |= {f"gram {name}": gram.numpy() for name, gram in stats.grams.items()}
        found["tokens"] = torch.cat([stats.token_gradients[name] for name in sorted(stats.token_gradients)]).numpy()
        took("statistics")
        for criterion in ("fisher", "kl"):
            scores = score_directions(loaded, images, criterion, n=IMAGES)
            found |= {f"{criterion} {key}": values for key, values in scores.values.items()}
            took(criterion)
        for basis, repair in CUTS:
            plan = plan_uniform(scores, Ratios.equal(0.5), basis=Basis.DIRECTIONS).model_copy(update={"basis": basis})
            student, record = cut_and_record(loaded, plan, repair=repair, data=images, images=IMAGES, seed=0)
            assert record.fitted is not None
            found |= {f"{basis} {name}": weight.detach().numpy() for name, weight in student.named_parameters()}
            took(basis)
        blocks = score_blocks(loaded, images, 1, n=IMAGES)
        found["depth"] = np.concatenate([[c.kl for c in step.candidates] for step in blocks.steps])
        took("depth")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = work(Path(sys.argv[1]), Path(sys.argv[2]))
    np.savez(Path(sys.argv[3]) / f"{rank()}.npz", **results)
