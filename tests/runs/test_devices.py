"""The devices of a process and of a run: which GPU, held where all runs folders see it, with memory for the batch."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.errors import refused
from tests.support.small_run import any_spec, device_taken, fork_worker, run_to_end, small_home, spec_for
from tests.support.verbs import call
from upvit_core.errors import RunError, UPViTError
from upvit_core.models import checkpoint
from upvit_core.ranks import own_cores
from upvit_core.records.known_shapes import deit_shape
from upvit_core.runs import RunStore, devices
from upvit_core.runs.devices import Device, lease, leases, own_device
from upvit_core.runs.memory_check import check_memory_of_shapes
from upvit_core.runs.queue import candidates_of, devices_of
from upvit_core.training.settings import DistillSettings

SMI = """#!/bin/sh
echo "0, GPU-a, NVIDIA A, 81559, {0}"
echo "1, GPU-b, NVIDIA A, 81559, {1}"
echo "2, GPU-c, NVIDIA A, 81559, {2}"
"""


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a machine of three GPUs with so much memory free, in MiB, of which a fake nvidia-smi tells."""
    monkeypatch.setattr(devices, "default_device", lambda: "cuda:0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")

    def make(*free: int) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(SMI.format(*free))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return make


def launched(monkeypatch: pytest.MonkeyPatch, rank: int, size: int, local: int | None = None) -> None:
    """The environment in which `torchrun` starts a process."""
    local = size if local is None else local
    values = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank % local, "LOCAL_WORLD_SIZE": local}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("rank", "local", "visible", "expected"),
    [(3, 8, "", "cuda:3"), (5, 4, "", "cuda:1"), (3, 4, "4,5,6,7", "cuda:3"), (3, 4, "7", "cuda:0")],
)
def test_each_process_takes_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, rank: int, local: int, visible: str, expected: str
) -> None:
    monkeypatch.setattr(devices, "default_device", lambda: "cuda:0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    launched(monkeypatch, rank, 8, local)
    assert own_device() == own_device("cuda") == expected
    assert own_device("cpu") == "cpu"
    with pytest.raises(RunError, match="--device cuda:2 cannot hold for all"):
        own_device("cuda:2")


@pytest.mark.parametrize(
    ("cores", "local", "slurm", "own"), [(12, 1, {}, 12), (12, 4, {}, 3), (1, 2, {}, 1), (64, 4, {"NTASKS": "8"}, 5),
                                         (64, 4, {"NTASKS": "1"}, 16)]
)  # fmt: skip
def test_workers_take_the_cores_that_a_process_may_use(
    monkeypatch: pytest.MonkeyPatch, cores: int, local: int, slurm: dict[str, str], own: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    launched(monkeypatch, 0, 8, local)
    for name, value in ({"CPUS_PER_TASK": "5"} | slurm if slurm else {}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert own_cores() == own


def test_a_verb_takes_its_gpu_before_anything_is_there(
    gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launched(monkeypatch, 3, 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    order: list[object] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", order.append)

    def load_model(source: object, device: str, **_: object) -> None:
        order.append(device)
        raise RunError("far enough")

    monkeypatch.setattr(checkpoint, "load_model", load_model)
    with pytest.raises(RunError, match="far enough"):
        call("score", "demo", "--criterion", "l1", "--out", tmp_path / "s.safetensors")
    assert order == [torch.device("cuda:3"), "cuda:3"]


def test_a_gpu_that_is_not_there_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with refused(UPViTError, "torch finds no GPU here"):
        call("score", "demo", "--criterion", "l1", "--device", "cuda", "--out", tmp_path / "s.safetensors")
    with refused(UPViTError, "no device 'gpu'"):
        call("score", "demo", "--criterion", "l1", "--device", "gpu", "--out", tmp_path / "s.safetensors")


def test_auto_takes_the_freest_gpu_that_no_run_holds(gpus: Callable[..., None], tmp_path: Path) -> None:
    gpus(100, 80000, 70000)
    assert own_device() == "cuda:1"
    assert own_device("cuda:0") == "cuda:0"
    with device_taken(RunStore(tmp_path / "runs"), "cuda:1"):
        assert own_device() == "cuda:2"
    gpus(90000, 80000, 70000)
    assert own_device() == "cuda:0"


def test_a_run_with_auto_holds_the_freest_gpus(gpus: Callable[..., None], tmp_path: Path) -> None:
    gpus(100, 80000, 70000)
    names, count = candidates_of(any_spec(processes=2))
    assert (names, count) == (("cuda:0", "cuda:1", "cuda:2"), 2)
    with leases(names, count) as held:
        assert held == ("cuda:1", "cuda:2")
        with lease("cuda:0") as free:
            assert free
        with leases(names, count) as others:
            assert others == ()
    with device_taken(RunStore(tmp_path / "runs"), "cuda:1"), leases(names, count) as held:
        assert set(held) == {"cuda:0", "cuda:2"}
    assert candidates_of(any_spec(device="cuda:1", processes=2)) == (("cuda:1", "cuda:2"), 2)


def test_a_launcher_s_processes_hold_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "default_device", lambda: "cuda:0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    launched(monkeypatch, 0, 8, 4)
    assert candidates_of(any_spec())[0] == ("cuda:0", "cuda:1", "cuda:2", "cuda:3")


def test_leases_are_one_for_all_runs_folders_and_apart_by_host(
    gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpus(1, 1, 1)
    with device_taken(RunStore(tmp_path / "other"), "cuda:1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # the same GPU by another number
        with lease("cuda:0") as free:
            assert not free
        monkeypatch.setattr(devices.socket, "gethostname", lambda: "elsewhere")
        with lease("cuda:0") as free:
            assert free


def test_a_run_waits_for_one_of_another_folder_and_says_what_it_had(tmp_path: Path) -> None:
    home, store = small_home(tmp_path), RunStore(tmp_path / "runs")
    run = store.create(spec_for(home, epochs=1))
    with device_taken(RunStore(tmp_path / "other")):
        pid = fork_worker(run)
        while "waiting for cpu" not in run.log.read_text() if run.log.exists() else True:
            pass
        os.kill(pid, 15)
        os.waitpid(pid, 0)
    store.resume(run.id)
    run_to_end(store, run)
    (summary,) = store.list()
    assert devices_of(summary) == summary.state.devices == ("cpu",)


def test_memory_is_forecast_for_each_process_on_all_its_devices() -> None:
    teacher, student = deit_shape("base"), deit_shape("small")
    settings = DistillSettings(batch_size=1024)
    eight = [Device(f"cuda:{n}", f"GPU {n}", 24 << 30, 24 << 30) for n in range(8)]
    alone, shared = (check_memory_of_shapes(teacher, student, settings, eight, n) for n in (1, 8))
    assert (alone.parts, shared.parts) == (2, 1)
    assert (shared.batch, shared.sentence) == (128, "")
    small = [*eight[:7], Device("cuda:7", "GPU 7", 24 << 30, 2 << 30)]
    tight = check_memory_of_shapes(teacher, student, settings, small, 8)
    assert tight.device.name == "cuda:7"
    assert "A batch of 128 for each of 8 processes needs" in tight.sentence
    cpu = [Device("cpu", "CPU", 64 << 30, 64 << 30)]
    one, four = (check_memory_of_shapes(teacher, student, settings, cpu, n) for n in (1, 4))
    assert four.memory.fixed == 4 * one.memory.fixed
    assert four.needed == pytest.approx(one.needed + 3 * one.memory.fixed)
