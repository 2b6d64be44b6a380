"""Keeps reruns quick once torch is loaded.

Streamlit 1.67 collects garbage, all generations, after every run of a page or fragment. With torch and timm loaded that
visits half a million objects each time: 0.3 s and more, during which nothing else runs. Objects that stay for the life
of the server are therefore taken out of the collector's sight (`gc.freeze`).
"""

import gc
import importlib
import os
import threading
from collections.abc import Callable

HEAVY = (
    "torch",
    "torch._dynamo",
    "torchvision",
    "timm",
    "upvit_core.models.checkpoint",
    "upvit_core.data",
    "upvit_core.evaluation",
    "upvit_core.pruning.prune",
)
_lock = threading.Lock()
_state = {"frozen": False, "imported": False}


def freeze_once() -> None:
    """After the first page has been drawn: what is loaded by then stays."""
    if not _state["frozen"]:
        _state["frozen"] = True
        gc.collect()
        gc.freeze()


def import_heavy(say: Callable[[str], None]) -> None:
    """Import what jobs need, in steps between which pages stay quick; done once."""
    with _lock:
        if _state["imported"]:
            return
        # While torch's threads wait for each other they leave the processor to pages, in place of spinning on it.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        for name in HEAVY:
            say("starting PyTorch, once")
            importlib.import_module(name)
            gc.freeze()
        _state["imported"] = True


def loaded() -> bool:
    """True if torch is imported, so that a page may use it without waiting."""
    return _state["imported"]
