"""A run that takes a second: a tiny teacher, forty coloured images, a plan; and workers that can be killed anywhere."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from tests.support.tiny import tiny
from upvit_core.models.checkpoint import save_model
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.records.scores import ImportanceScores, expected_widths
from upvit_core.records.shape import ModelShape
from upvit_core.runs import DistillSettings, Run, RunSpec, RunStore
from upvit_core.runs import worker as worker_module
from upvit_core.runs.devices import lease

CFG = {"input_size": (3, 16, 16), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "crop_pct": 1.0}
MEASURED = ("seconds", "images_per_s", "images_per_s_low", "images_per_s_high", "speedup", "repeats", "waiting")
"""Fields of rows that time decides."""
SETTINGS: dict[str, object] = {"batch_size": 8, "threads": 1, "workers": 0, "warmup_epochs": 0.5, "lr": 1e-3}


def write_images(root: Path, *, classes: int = 5, train: int = 8, val: int = 4, side: int = 16) -> Path:
    """An image folder whose classes differ in colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                colour = np.array([50 * label, 250 - 50 * label, 125])
                pixels = np.clip(colour + rng.normal(0, 40, (side, side, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def write_teacher(folder: Path, variant: str = "class token") -> ModelShape:
    model, shape = tiny(variant, torch.float32)
    save_model(model, folder, shape=shape, pretrained_cfg=CFG, name="tiny teacher")
    return shape


def half_plan(shape: ModelShape, ratio: float = 0.5) -> dict[str, object]:
    """A plan from made-up scores: the same ratio everywhere, half the heads."""
    rng = np.random.default_rng(1)
    values = {key: rng.random(width) for key, width in expected_widths(shape).items()}
    scores = ImportanceScores(values, "noise", "nats", shape)
    heads = None if shape.num_heads is None else shape.num_heads // 2
    plan = plan_uniform(scores, Ratios.equal(ratio), heads=heads)
    return json.loads(plan.to_json())


def spec_for(home: Path, *, epochs: int = 3, name: str = "small", **settings: object) -> RunSpec:
    """A spec on the teacher and images that `small_home` wrote."""
    from upvit_core.models.checkpoint import load_model

    shape = load_model(home / "teacher").shape
    return RunSpec(
        name=name,
        teacher=str(home / "teacher"),
        plan=half_plan(shape),
        data=str(home / "images"),
        epochs=epochs,
        device="cpu",
        settings=DistillSettings(**{**SETTINGS, **settings}),
    )


def any_spec(**values: object) -> RunSpec:
    """A spec that no worker does."""
    return RunSpec(**{"name": "half", "teacher": "demo", "student": "x", "data": "demo", "epochs": 2, **values})


def small_home(home: Path) -> Path:
    write_teacher(home / "teacher")
    write_images(home / "images")
    return home


def fork_worker(run: Run) -> int:
    """Start a worker as a copy of this process (no imports to wait for), in a session of its own; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        AcceleratorState._reset_state(reset_partial_state=True)  # a test before may have trained in this process
        log = os.open(run.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        status = worker_module.main([str(run.folder)])
    finally:
        os._exit(status)


@contextmanager
def device_taken(store: RunStore, name: str = "cpu") -> Iterator[None]:
    """Another process holds the device meanwhile (this one must not: its forks would hold it too)."""
    store.root.mkdir(parents=True, exist_ok=True)
    ready, told = os.pipe()
    pid = os.fork()
    if not pid:
        with lease(name) as held:
            os.write(told, b"1" if held else b"0")
            signal.pause()
    assert os.read(ready, 1) == b"1"
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(told)


def kill_after(pid: int, seconds: float) -> bool:
    """SIGKILL a worker after a while; False where it had ended by itself."""
    time.sleep(seconds)
    ended, _ = os.waitpid(pid, os.WNOHANG)
    if ended:
        return False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def wait_for(pid: int) -> int:
    """Exit status of a forked worker."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_to_end(store: RunStore, run: Run) -> None:
    """Run in a fork; fails where the run does not end as done."""
    wait_for(fork_worker(run))
    state = store.state(run.id)
    assert state.state == "done", "\n".join([state.error, *store.tail_log(run.id)])


def weights_of(run: Run) -> bytes:
    """The distilled model's file."""
    return (run.model / "model.safetensors").read_bytes()


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
