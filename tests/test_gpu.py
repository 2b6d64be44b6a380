"""A GPU gives the CPU's results: `python -m pytest -m gpu tests/test_gpu.py`.

`UPVIT_TEST_DEVICE=cpu` runs the same lines without one, to see that they hold together.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from tests.oracle import reference
from tests.support.small_run import small_home, spec_for
from tests.support.tiny import TensorProxy, images, tiny
from upvit_core.importance.criterion import autocast
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.kl import KL
from upvit_core.models.build import adapt
from upvit_core.profiling.throughput import device_name, measure
from upvit_core.runs import RunStore

DEVICE = os.environ.get("UPVIT_TEST_DEVICE", "cuda")
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def scores(criterion: KL | Fisher, device: str) -> dict[str, np.ndarray]:
    model, shape = tiny("3 heads, 5 blocks", torch.float32)
    return criterion.attribute(adapt(model.to(device), shape), TensorProxy(images(30, torch.float32))).values


class TestOnTheDevice:
    pytestmark = on_gpu

    def test_exact_scores_equal_slow_removal(self) -> None:
        slow, _ = tiny("3 heads, 5 blocks")
        got = scores(KL(), DEVICE)
        for key, expected in reference.kl_scores(slow, images(30, torch.float32).double()).items():
            np.testing.assert_allclose(got[key], expected.numpy(), rtol=1e-4, atol=1e-7, err_msg=key)

    def test_fisher_equals_the_cpu_s(self) -> None:
        got, expected = scores(Fisher(), DEVICE), scores(Fisher(), "cpu")
        for key, values in expected.items():
            np.testing.assert_allclose(got[key], values, rtol=1e-3, atol=1e-6, err_msg=key)

    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    @pytest.mark.parametrize("criterion", [KL, Fisher])
    def test_half_precision_ranks_alike(self, criterion: type, precision: str) -> None:
        full, half = scores(criterion(), DEVICE), scores(criterion(precision=precision), DEVICE)
        for key in full:
            assert spearmanr(full[key], half[key])[0] > 0.9, key

    @pytest.mark.parametrize("amp", ["no", "bf16", "fp16"])
    def test_a_run_ends_with_finite_numbers(self, amp: str, tmp_path: Path) -> None:
        if DEVICE == "cpu" and amp == "fp16":
            pytest.skip("the CPU has no fp16 training")
        store = RunStore(tmp_path / "runs")
        run = store.create(spec_for(small_home(tmp_path), amp=amp).model_copy(update={"device": DEVICE}))
        command = [sys.executable, "-m", "upvit_core.runs.worker", str(run.folder)]
        subprocess.run(command, check=False)  # of its own: a fork cannot use CUDA
        assert store.state(run.id).state == "done", store.tail_log(run.id)
        rows = store.read_metrics(run.id)[0]
        losses = [row["loss"] for row in rows if row["phase"] == "train"]
        assert losses
        assert np.isfinite(losses).all()

    @pytest.mark.parametrize("amp", ["no", "fp16"])
    def test_a_stopped_run_goes_on_as_if_never_stopped(self, amp: str, tmp_path: Path) -> None:
        """With fp16 the scaler goes on too: a fresh one would begin at another scale and skip steps."""
        if DEVICE == "cpu" and amp == "fp16":
            pytest.skip("the CPU has no fp16 training")
        store, spec = RunStore(tmp_path / "runs"), spec_for(small_home(tmp_path), amp=amp, epochs=40)
        spec = spec.model_copy(update={"device": DEVICE})
        whole, run = store.create(spec), store.create(spec)
        command = [sys.executable, "-m", "upvit_core.runs.worker"]
        subprocess.run([*command, str(whole.folder)], check=False)
        worker = subprocess.Popen([*command, str(run.folder)], start_new_session=True)
        while worker.poll() is None and sum(row["phase"] == "train" for row in store.read_metrics(run.id)[0]) < 3:
            time.sleep(0.05)
        worker.send_signal(signal.SIGTERM)
        worker.wait(120)
        assert store.state(run.id).state == "interrupted", store.tail_log(run.id)
        store.resume(run.id)
        subprocess.run([*command, str(run.folder)], check=False)
        expected, losses = (
            {row["step"]: row["loss"] for row in store.read_metrics(one.id)[0] if row["phase"] == "train"}
            for one in (whole, run)
        )
        assert losses.keys() >= expected.keys()
        tolerance = 0 if DEVICE == "cpu" else 2e-2  # a GPU adds in another order each time
        for step, loss in expected.items():
            assert losses[step] == pytest.approx(loss, rel=tolerance, abs=1e-9), step

    def test_two_gpus_follow_one(self, tmp_path: Path) -> None:
        """NCCL between two GPUs (gloo between two CPU processes): the same curve at the same global batch."""
        if DEVICE != "cpu" and torch.cuda.device_count() < 2:
            pytest.skip("this machine has one GPU")
        store, spec = RunStore(tmp_path / "runs"), spec_for(small_home(tmp_path), epochs=6, drop_path=0.0)
        curves = []
        for processes in (1, 2):
            run = store.create(spec.model_copy(update={"device": DEVICE, "processes": processes}))
            subprocess.run([sys.executable, "-m", "upvit_core.runs.worker", str(run.folder)], check=False)
            assert store.state(run.id).state == "done", store.tail_log(run.id)
            curves.append([row["loss"] for row in store.read_metrics(run.id)[0] if row["phase"] == "train"])
        assert curves[0] == pytest.approx(curves[1], rel=1e-3, abs=1e-4)
        assert len(curves[0]) > 5

    def test_throughput_names_the_device(self) -> None:
        model, _ = tiny("class token", torch.float32)
        (measured,) = measure([model.to(DEVICE)], images(8, torch.float32).to(DEVICE), repeats=3)
        assert measured.images_per_s > 0
        assert measured.device == device_name(DEVICE)


def test_float32_scores_forbid_tf32_on_a_gpu() -> None:
    """Of convolutions and of matrix products, where NVIDIA's containers allow it."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    try:
        with autocast(torch.device("cuda"), "float32"):
            assert not torch.backends.cudnn.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32 == before[1]
    finally:
        torch.set_float32_matmul_precision(before[0])
