"""Memory that runs out: batches in parts give the whole batch's loss and gradients, and the log says so."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import ROOT
from tests.support.small_job import make_job, nothing
from tests.support.small_run import CFG, fork_worker, run_to_end, spec_for, wait_for, write_images
from tests.support.tiny import TensorProxy, tiny
from tests.support.tiny import images as noise
from upvit_core.data import open_images
from upvit_core.errors import MemoryLimitError, RunError
from upvit_core.models.build import adapt
from upvit_core.models.predict import predict
from upvit_core.models.vit import ViTAdapter
from upvit_core.out_of_memory import bounds, is_out_of_memory
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.pruning.basis import collect_statistics, directions_scores, prune_directions
from upvit_core.pruning.repair.repair import repair
from upvit_core.records.basis import Basis
from upvit_core.runs import RunStore
from upvit_core.runs.devices import Device, devices, lease_names, parse_gpus, parse_instances, show_only
from upvit_core.runs.memory_check import check_memory
from upvit_core.training.distillation import Distillation, distill, isolated_rng

WHOLE = {"drop_path": 0.0, "mixup": 0.2}


@pytest.fixture(scope="module")
def train_images(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = write_images(tmp_path_factory.mktemp("data") / "images")
    return open_images(str(root), "train", pretrained_cfg=CFG)


def room_for(model: torch.nn.Module, images: int, kind: type[Exception] = torch.OutOfMemoryError) -> None:
    """From now on the model takes no more images than that at once."""

    def check(module: torch.nn.Module, given: Any) -> None:
        if len(given[0]) > images:
            raise kind("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.register_forward_pre_hook(check)


def steps(job: Distillation, count: int = 3) -> list[torch.Tensor]:
    """Losses, then gradients of the last step."""
    gradients = []
    with isolated_rng():
        for images, labels in job.batches.steps(0, count):
            job.train_step(images.clone(), labels)
            gradients.append(job.sums.clone())
    return gradients + [p.grad.clone() for p in job.student.parameters() if p.grad is not None]


@pytest.mark.parametrize(("room", "parts"), [(4, 2), (3, 4), (2, 4), (1, 8)])
def test_loss_and_gradients_are_the_whole_batch_s(train_images: Any, room: int, parts: int) -> None:
    expected = steps(make_job(train_images, **WHOLE))
    job = make_job(train_images, **WHOLE)
    lines: list[str] = []
    job.notify = lines.append
    room_for(job.student, room)
    others = steps(job)
    assert job.parts == parts
    assert len(lines) == parts.bit_length() - 1
    assert lines[-1] == f"Out of memory: the batch of 8 is trained {8 // parts} images at a time, gradients added up."
    for a, b in zip(expected, others, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-6)


def test_memory_that_runs_out_in_the_backward_pass_leaves_no_gradient_behind(train_images: Any) -> None:
    expected = steps(make_job(train_images, **WHOLE))
    job = make_job(train_images, **WHOLE)
    backward, failed = job.accelerator.backward, []

    def fails_once(loss: torch.Tensor) -> None:
        backward(loss)
        if not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    job.accelerator.backward = fails_once
    try:
        others = steps(job)
    finally:
        job.accelerator.backward = backward
    assert job.parts == 2
    for a, b in zip(expected, others, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-6)


def test_one_image_too_many_is_a_sentence_and_other_errors_pass(train_images: Any) -> None:
    job = make_job(train_images)
    room_for(job.student, 0)
    with pytest.raises(RunError, match="with a single image"):
        steps(job)
    job = make_job(train_images)
    room_for(job.student, 4, RuntimeError)
    with pytest.raises(RuntimeError, match="Tried to allocate"):
        steps(job)
    assert job.parts == 1
    assert is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate"))


def test_parts_are_saved_and_a_resumed_run_is_the_same(train_images: Any) -> None:
    """With stochastic depth, whose draws depend on the parts."""
    whole = make_job(train_images, drop_path=0.3)
    room_for(whole.student, 4)
    distill(whole, report=nothing, after_step=nothing)
    first = make_job(train_images, drop_path=0.3)
    room_for(first.student, 4)
    saved: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def stop(job: Distillation) -> None:
        if job.step == 7:
            saved.update(job.state_dict())
            raise Stop

    with pytest.raises(Stop):
        distill(first, report=nothing, after_step=stop)
    assert saved["parts"] == 2
    second = make_job(train_images, drop_path=0.3)
    second.load_state_dict(saved)
    assert second.parts == 2
    distill(second, report=nothing, after_step=nothing)
    for a, b in zip(whole.result.parameters(), second.result.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bounds() -> None:
    assert bounds(10, 4) == [(0, 2), (2, 5), (5, 7), (7, 10)]
    assert bounds(7, 7) == [(i, i + 1) for i in range(7)]


def test_evaluation_halves_too(train_images: Any) -> None:
    job = make_job(train_images)
    batches = list(train_images.batches(16))
    expected, labels = predict(job.teacher, batches)
    room_for(job.teacher, 3)
    others, same = predict(job.teacher, batches)
    torch.testing.assert_close(others, expected)
    assert torch.equal(labels, same)


def test_a_run_says_so_in_log_and_state(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(tmp_path / "runs")
    init = Distillation.__init__

    def limited(self: Distillation, student: torch.nn.Module, *given: Any, **named: Any) -> None:
        init(self, student, *given, **named)
        room_for(self.model, 4)

    monkeypatch.setattr(Distillation, "__init__", limited)
    monkeypatch.setattr("upvit_core.runs.train.EVAL_BATCH", {"cpu": 4})
    run = store.create(spec_for(home, epochs=1))
    run_to_end(store, run)
    sentence = "Out of memory: the batch of 8 is trained 4 images at a time, gradients added up."
    assert sentence in store.state(run.id).note
    assert sentence in run.log.read_text()


def without_room(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    """From now on no attention of a ViT takes more images than that at once."""
    attention = ViTAdapter.attention

    def limited(self: ViTAdapter, block: int, x: torch.Tensor) -> Any:
        if len(x) > images:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return attention(self, block, x)

    monkeypatch.setattr(ViTAdapter, "attention", limited)


def test_statistics_and_repair_halve_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = tiny("class token")
    adapter, proxy = adapt(model, shape), TensorProxy(noise(40))
    scores = directions_scores(adapter, proxy, collect_statistics(adapter, proxy))
    plan = plan_uniform(scores, Ratios.equal(0.5), basis=Basis.DIRECTIONS)

    def repaired() -> tuple[dict[str, torch.Tensor], torch.nn.Module]:
        stats = collect_statistics(adapter, proxy, batch_size=16)
        student = prune_directions(model, shape, plan, stats)
        return stats.grams, repair(student, model, plan, proxy, stats=stats)[0]

    grams, student = repaired()
    without_room(monkeypatch, 3)
    others, other = repaired()
    for name, gram in grams.items():
        torch.testing.assert_close(others[name], gram, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(other(proxy.tensor), student(proxy.tensor), rtol=1e-6, atol=1e-8)
    without_room(monkeypatch, 0)
    with pytest.raises(MemoryLimitError, match="Not even one at a time"):
        collect_statistics(adapter, proxy)


def a_device(free: int, name: str = "cpu") -> Device:
    return Device(name, "this one", 64 << 30, free)


def test_what_would_not_fit_is_said_before(home: Path) -> None:
    spec = spec_for(home)
    roomy = check_memory(spec, [a_device(1 << 40)])
    assert roomy is not None
    assert roomy.parts == 1
    assert roomy.sentence == ""
    tight = check_memory(spec, [a_device(roomy.memory.total(3))])
    assert tight is not None
    assert tight.parts == 4
    assert "trained 2 images at a time" in tight.sentence
    full = check_memory(spec, [a_device(roomy.memory.total(1) - 1)])
    assert full is not None
    assert full.parts is None
    assert "Even one image at a time needs" in full.sentence
    gpu = check_memory(spec, [a_device(1 << 40, "cuda:0")])
    assert gpu is not None
    assert gpu.needed > roomy.needed
    folder = spec.model_copy(update={"plan": None, "student": str(home / "teacher")})
    other = check_memory(folder, [a_device(1 << 40)])
    assert other is not None
    assert other.memory.fixed > roomy.memory.fixed
    assert check_memory(folder.model_copy(update={"student": "/nowhere"})) is None


def test_a_tight_run_begins_in_parts_and_an_impossible_one_fails(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(tmp_path / "runs")
    memory = check_memory(spec_for(home)).memory  # type: ignore[union-attr]
    for images, state in ((3, "done"), (0, "failed")):
        device = a_device(memory.total(images))
        monkeypatch.setattr("upvit_core.runs.worker.devices_named", lambda names, device=device: [device])
        run = store.create(spec_for(home, epochs=1))
        wait_for(fork_worker(run))
        now = store.state(run.id)
        assert now.state == state, now
        assert ("2 images at a time" in now.note) if state == "done" else ("Even one image" in now.error)


def test_devices_of_this_machine() -> None:
    cpu = devices()[-1]
    assert cpu.name == "cpu"
    assert 0 < cpu.free <= cpu.total
    assert cpu.used == cpu.total - cpu.free


TABLE = """0, GPU-aaaa, NVIDIA A, 81559, 80000
1, GPU-bbbb, NVIDIA B, 81559, 12
2, GPU-cccc, NVIDIA C, [N/A], [N/A]
nonsense
"""


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["GPU 0, NVIDIA A", "GPU 1, NVIDIA B"]),
        ("1", ["GPU 0, NVIDIA B"]),
        ("1,0", ["GPU 0, NVIDIA B", "GPU 1, NVIDIA A"]),
        ("GPU-bbbb", ["GPU 0, NVIDIA B"]),
        ("", []),
    ],
)
def test_gpus_are_numbered_as_torch_numbers_them(visible: str | None, names: list[str]) -> None:
    gpus = parse_gpus(TABLE, visible)
    assert [device.label for device in gpus] == names
    assert [device.name for device in gpus] == [f"cuda:{i}" for i in range(len(names))]


LISTING = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa)
  MIG 3g.20gb     Device  0: (UUID: MIG-1111)
  MIG 1g.5gb+me   Device  1: (UUID: MIG-2222)
"""


@pytest.mark.parametrize(
    ("visible", "sizes"), [(None, [20]), ("MIG-2222", [5]), ("MIG-2222,MIG-1111", [5, 20]), ("0", []), ("", [])]
)
def test_parts_of_a_gpu_have_their_own_memory(visible: str | None, sizes: list[int]) -> None:
    parts = parse_instances(LISTING, visible)
    assert [part.total >> 30 for part in parts] == sizes
    assert all("not known" in part.label for part in parts)
    assert parse_instances(TABLE, visible) == []


@pytest.mark.parametrize(
    ("before", "device", "count", "after"),
    [
        ("", "cuda:1", 1, "1"), ("4,6", "cuda:1", 1, "6"), ("4", "cuda:1", 1, ""), ("4,6", "cuda", 1, "4"),
        ("", "cpu", 1, ""), ("", "cuda:1", 2, "1,2"), ("4,6,7", "cuda:1", 2, "6,7"), ("4,6", "auto", 2, "4,6"),
    ],
)  # fmt: skip
def test_a_run_sees_only_its_gpus(
    monkeypatch: pytest.MonkeyPatch, before: str, device: str, count: int, after: str
) -> None:
    import os

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    show_only(lease_names(device, count))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == after


def test_the_command_line_says_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from upvit_core.cli import runs
    from upvit_core.runs.spec import RunSpec

    demo = {"teacher": "demo", "student": str(ROOT / "assets/demo"), "data": "demo", "epochs": 1}
    asked = RunSpec(name="r", **demo)
    needed = check_memory(asked, [a_device(1 << 40)])
    assert needed is not None
    for free, sentence in (
        (2 * needed.needed, ""),
        (needed.needed - 1, "gradients added up"),
        (1, "choose another device"),
    ):
        monkeypatch.setattr("upvit_core.runs.memory_check.devices_for", lambda *_, free=free: [a_device(free)])
        runs._warn_of_memory(asked)
        err = capsys.readouterr().err
        assert (sentence in err) if sentence else not err
    runs._warn_of_memory(asked.model_copy(update={"executor": "slurm"}))
    assert not capsys.readouterr().err
