"""Published results, as published: to be drawn beside measured ones as hollow diamonds, never mixed with them.

Source: "A Unified Pruning Framework for Vision Transformers" (arXiv 2111.15127) and the papers named
there; ImageNet top-1.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Published:
    """top1 in percent of ImageNet; params in millions; speed_up against DeiT-B, where that was given.

    images_per_s on a Titan Xp at batch 32. `widths` names the stock DeiT whose shape the model has.
    """

    name: str
    top1: float
    params: float
    images_per_s: float | None = None
    speed_up: float | None = None
    widths: Literal["base", "small", "tiny"] | None = None
    note: str = ""


PUBLISHED = (
    Published("DeiT-B", 81.84, 86.6, 199.0, 1.0, "base", "images/s implied by the published speed-up"),
    Published("DeiT-S", 79.8, 22.1, 603.1, 3.03, "small", "same shape as UP-DeiT-S"),
    Published("DeiT-T", 72.2, 5.7, 1408.5, None, "tiny", "same shape as UP-DeiT-T"),
    Published("UP-DeiT-S", 81.56, 22.1, 603.1, 3.03, "small"),
    Published("UP-DeiT-T", 75.94, 5.7, 1408.5, None, "tiny", "75.79 in the preprint"),
    Published("Evo-ViT", 81.11, 86.6, None, 1.53, None),
    Published("UP-PVTv2-B1", 79.48, 14.0, 249.9),
    Published("UP-PVTv2-B0", 75.30, 3.7, 139.9),
    Published("NViT-S", 82.19, 21.0, None, 2.52, None, "another GPU"),
    Published("NViT-T", 76.21, 6.9, None, 4.97, None, "another GPU"),
    Published("Isomorphic, 20.7 M", 82.41, 20.7, note="distilled teacher; images/s not given"),
    Published("Isomorphic, 5.74 M", 77.50, 5.74, note="distilled teacher; images/s not given"),
)
