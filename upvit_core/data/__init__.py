"""Image sets for scoring, training and evaluation: the demo, a folder of classes, an archive of one, or a timm name."""

from upvit_core.data.images import ImageSet
from upvit_core.data.opening import open_images
from upvit_core.data.proxy import ProxySet, draw_proxy, proxy_indices
from upvit_core.data.transforms import eval_transform, training_transform

__all__ = [
    "ImageSet",
    "ProxySet",
    "draw_proxy",
    "eval_transform",
    "open_images",
    "proxy_indices",
    "training_transform",
]
