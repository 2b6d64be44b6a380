import copy
import math
import random
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn

from tests.support.small_job import make_job, nothing
from tests.support.small_run import CFG, MEASURED, write_images
from tests.support.tiny import tiny
from upvit_core.data import ImageSet, open_images
from upvit_core.errors import RunError
from upvit_core.models.drop_path import set_drop_path
from upvit_core.training.batches import (
    CachedBatches,
    TrainingBatches,
    batch_source,
    own_positions,
    seed_everything,
    shift_and_flip,
)
from upvit_core.training.distillation import Distillation, Row, distill, distillation_loss, isolated_rng
from upvit_core.training.settings import PRESETS


@pytest.fixture(scope="module")
def train_images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    root = write_images(tmp_path_factory.mktemp("data") / "images")
    return open_images(str(root), "train", pretrained_cfg=CFG)


def slow_loss(logits: Tensor, targets: Tensor, teacher: Tensor, alpha: float, T: float) -> tuple[float, float, float]:
    """Eq. 2 in plain Python, image by image."""
    ce = kl = 0.0
    for row, target, other in zip(logits.tolist(), targets.tolist(), teacher.tolist(), strict=True):
        total = sum(math.exp(v) for v in row)
        ce -= sum(t * math.log(math.exp(v) / total) for t, v in zip(target, row, strict=True))
        p = [math.exp(v / T) / sum(math.exp(u / T) for u in row) for v in row]
        q = [math.exp(v / T) / sum(math.exp(u / T) for u in other) for v in other]
        kl += sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
    n = len(logits)
    return ce / n + alpha * T * T * kl / n, ce / n, kl / n


@pytest.mark.parametrize(("alpha", "temperature"), [(1.0, 1.0), (0.3, 1.0), (2.0, 4.0), (0.0, 0.5)])
def test_loss_equals_eq_2_written_out(alpha: float, temperature: float) -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(2, 6, 5, dtype=torch.float64)
    targets = torch.rand(6, 5, dtype=torch.float64)
    targets /= targets.sum(1, keepdim=True)
    parts = distillation_loss(logits, targets, teacher, alpha=alpha, temperature=temperature)
    expected = slow_loss(logits, targets, teacher, alpha, temperature)
    assert (parts.loss.item(), parts.ce.item(), parts.kl.item()) == pytest.approx(expected, rel=1e-9)


def test_released_preset_is_the_released_sum() -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(2, 32, 10, dtype=torch.float64)
    targets = torch.eye(10, dtype=torch.float64)[torch.randint(0, 10, (32,))]
    p, q = logits.log_softmax(1), teacher.softmax(1)
    released = -(targets * p).sum(1).mean() + 0.2 * (q * (q.log() - p)).sum()
    ours = distillation_loss(logits, targets, teacher, alpha=PRESETS["released_code"].alpha)
    assert ours.loss.item() == pytest.approx(released.item(), rel=1e-12)


def test_teacher_sees_the_mixed_image_and_ce_takes_mixed_targets(
    train_images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(train_images)
    seen: dict[str, torch.Tensor] = {}
    job.teacher.register_forward_hook(lambda module, given, out: seen.update(teacher=given[0].clone(), q=out))
    job.student.register_forward_hook(lambda module, given, out: seen.update(student=given[0].clone(), p=out.detach()))
    given, labels = next(job.batches.steps(0, 1))
    images = job.on_device(given)
    with isolated_rng():
        job.train_step(given, labels)
        seed_everything(0, 0)
        assert job.mixup is not None
        mixed, targets = job.mixup(images.clone(), labels)
    assert not torch.equal(mixed, images)
    assert torch.equal(seen["teacher"], mixed)
    assert torch.equal(seen["student"], mixed)
    loss, ce, kl = slow_loss(seen["p"].double(), targets.double(), seen["q"].double(), 1.0, 1.0)
    assert job.take_row() | {"lr": 0} == {
        "step": 1, "epoch": 1 / 5, "phase": "train", "lr": 0, "seconds": 0.0,
        "loss": pytest.approx(loss, rel=1e-5), "ce": pytest.approx(ce, rel=1e-5), "kl": pytest.approx(kl, rel=1e-5),
    }  # fmt: skip


def test_features_are_matched_through_a_linear_map(train_images: ImageSet) -> None:
    """The first step's term by hand; with a heavy weight the student's feature nears the teacher's."""
    rows: list[Row] = []
    job = make_job(train_images, epochs=20, feature_weight=50.0, drop_path=0.0, cutmix=0.0, alpha=0.0, lr=3e-3)
    assert isinstance(job.map, nn.Linear)
    assert (job.map.in_features, job.map.out_features) == (8, 16)
    given, labels = next(job.batches.steps(0, 1))
    images = job.on_device(given)
    with torch.no_grad():
        theirs, ours = (m.forward_head(m.forward_features(images), pre_logits=True) for m in (job.teacher, job.student))
        expected = (job.map(ours) - theirs).square().mean().item()
    with isolated_rng():
        job.train_step(given, labels)
    row = job.take_row()
    assert row["features"] == pytest.approx(expected, rel=1e-5)
    assert row["loss"] == pytest.approx(row["ce"] + 50 * row["features"], rel=1e-5)
    distill(job, report=rows.append, after_step=nothing)
    assert rows[-1]["features"] < expected / 2
    assert "map.weight" not in job.result.state_dict()
    assert all(not m._forward_pre_hooks for model in (job.teacher, job.student) for m in model.modules())


def test_training_leaves_the_teacher_and_the_random_state_alone(train_images: ImageSet) -> None:
    job = make_job(train_images)
    before = copy.deepcopy(job.teacher.state_dict())
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    distill(job, report=nothing, after_step=nothing)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected
    assert all(torch.equal(before[name], value) for name, value in job.teacher.state_dict().items())


def test_a_heavy_kl_term_brings_the_student_to_its_teacher(train_images: ImageSet) -> None:
    rows: list[Row] = []
    job = make_job(train_images, epochs=30, drop_path=0.0, lr=3e-3, alpha=1000.0)
    distill(job, report=rows.append, after_step=nothing)
    assert rows[-1]["kl"] < rows[0]["kl"] / 2


def test_the_student_learns(train_images: ImageSet) -> None:
    rows: list[Row] = []
    job = make_job(train_images, epochs=30, cutmix=0.0, drop_path=0.0, lr=3e-3, alpha=0.0)
    distill(job, report=rows.append, after_step=nothing)
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert rows[-1]["step"] == job.total_steps == 150


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"drop_path": 0.3, "mixup": 0.4},
        {"ema_decay": 0.0, "cutmix": 0.0},
        {"clip_grad": 0.5, "label_smoothing": 0.1},
        {"feature_weight": 0.7},
    ],
    ids=["recipe", "stochastic depth and mixup", "no averaging", "clipping", "features"],
)
def test_going_on_from_any_step_is_the_same_run_bit_for_bit(
    train_images: ImageSet, settings: dict[str, object], tmp_path: Path
) -> None:
    states: dict[int, dict[str, object]] = {}
    rows: list[Row] = []
    whole = make_job(train_images, **settings)
    distill(
        whole, report=rows.append, after_step=lambda job: states.update({job.step: copy.deepcopy(job.state_dict())})
    )
    expected = whole.result.state_dict()
    for step in (1, 4, 5, 11, whole.total_steps - 1):
        torch.save(states[step], tmp_path / "state.pt")
        again = make_job(train_images, **settings)
        again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        later: list[Row] = []
        result = distill(again, report=later.append, after_step=nothing).state_dict()
        assert all(torch.equal(expected[name], result[name]) for name in expected), f"from step {step}"
        strip = dict.fromkeys(MEASURED, 0)
        assert [row | strip for row in later] == [row | strip for row in rows if row["step"] > step]


def test_a_checkpoint_of_another_run_is_refused(train_images: ImageSet) -> None:
    with pytest.raises(RunError, match=r"15 steps, this one has 20"):
        make_job(train_images, epochs=4).load_state_dict(make_job(train_images).state_dict())
    with pytest.raises(RunError, match="does not fit"):
        make_job(train_images).load_state_dict(make_job(train_images, student_ratio=0.0).state_dict())


def test_a_loss_that_is_no_number_stops_the_run(train_images: ImageSet) -> None:
    job = make_job(train_images)
    with torch.no_grad():
        job.student.get_submodule("head").weight.fill_(float("nan"))
    with pytest.raises(RunError, match="loss became nan at step 1"):
        distill(job, report=nothing, after_step=nothing)


def test_averaged_weights_follow_their_definition(train_images: ImageSet) -> None:
    job = make_job(train_images, epochs=2, ema_decay=0.9)
    name = "head.weight"
    average = job.student.state_dict()[name].clone()

    def follow(job: Distillation) -> None:
        nonlocal average
        k = job.step - 1
        decay = 0.0 if k <= 0 else min(1 - (1 + k) ** (-2 / 3), 0.9)
        average = decay * average + (1 - decay) * job.student.state_dict()[name]

    result = distill(job, report=nothing, after_step=follow)
    assert torch.allclose(result.state_dict()[name], average, atol=1e-6)


def test_schedule_warms_up_then_follows_a_cosine(train_images: ImageSet) -> None:
    rates: list[float] = []
    job = make_job(train_images, epochs=8, warmup_epochs=1.0, lr=1e-2, min_lr=1e-4)
    rates.append(job.optimizer.param_groups[0]["lr"])
    distill(job, report=nothing, after_step=lambda job: rates.append(job.optimizer.param_groups[0]["lr"]))
    for step, rate in enumerate(rates[:-1]):
        if step < 5:
            expected = 1e-6 + step * (1e-2 - 1e-6) / 5
        else:
            expected = 1e-4 + (1e-2 - 1e-4) * (1 + math.cos(math.pi * (step - 5) / 35)) / 2
        assert rate == pytest.approx(expected, rel=1e-9)


def test_stochastic_depth_is_set_by_timms_rule_and_taken_away() -> None:
    model = copy.deepcopy(tiny("class token", torch.float32)[0])
    set_drop_path(model, 0.2)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])
    assert [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.blocks] == rates
    set_drop_path(model, 0.0)
    assert all(isinstance(block.drop_path1, nn.Identity) for block in model.blocks)


@pytest.mark.parametrize(("batch", "processes"), [(8, 1), (8, 2), (24, 3), (16, 8)])
def test_processes_share_a_batch_in_mirrored_pairs(batch: int, processes: int) -> None:
    shares = [own_positions(batch, rank, processes) for rank in range(processes)]
    assert sorted(i for share in shares for i in share) == list(range(batch))
    for share in shares:
        assert [batch - 1 - i for i in share] == share[::-1]


def test_every_image_comes_once_an_epoch_in_an_order_of_its_own(train_images: ImageSet) -> None:
    batches = TrainingBatches(batch_source(train_images, CFG, seed=3), batch_size=8, seed=3)
    orders = [batches.indices(epoch).ravel().tolist() for epoch in (0, 1)]
    assert [sorted(order) for order in orders] == [list(range(40))] * 2
    assert orders[0] != orders[1]
    assert orders[0] == TrainingBatches(batches.source, batch_size=8, seed=3).indices(0).ravel().tolist()


@pytest.mark.parametrize("side", [16, 48], ids=["in memory", "image by image"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_where_one_starts(tmp_path: Path, side: int, workers: int) -> None:
    root = write_images(tmp_path / "images", side=side)
    cfg = {**CFG, "input_size": (3, side, side)}
    images = open_images(str(root), "train", pretrained_cfg=cfg)
    source = batch_source(images, cfg, seed=0, workers=workers)
    assert isinstance(source, CachedBatches) == (side == 16)
    batches = TrainingBatches(source, batch_size=8, seed=0)
    with isolated_rng():
        children: list[set[int]] = []
        whole = []
        for batch in batches.steps(10, 17):
            whole.append(batch)
            children.append({child.pid for child in psutil.Process().children()})
        rest = list(batches.steps(13, 17))
    assert all(pids == children[0] for pids in children), "workers live over epochs"
    for (x, y), (u, v) in zip(whole[3:], rest, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


def test_shift_and_flip_equals_a_slow_copy() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, 255, (6, 3, 7, 5), generator=generator, dtype=torch.uint8)
    shifts = torch.randint(0, 5, (6, 2), generator=generator)
    flips = torch.tensor([True, False] * 3)
    result = shift_and_flip(x, shifts, flips, 2)
    for i in range(6):
        for row in range(7):
            for column in range(5):
                source_column = 4 - column if flips[i] else column
                r, c = row + int(shifts[i, 0]) - 2, source_column + int(shifts[i, 1]) - 2
                expected = x[i, :, r, c] if 0 <= r < 7 and 0 <= c < 5 else torch.zeros(3, dtype=torch.uint8)
                assert torch.equal(result[i, :, row, column], expected)


def test_in_memory_images_are_what_the_loader_gives(train_images: ImageSet) -> None:
    plain = next(iter(train_images.batches(40)))[0]
    source = CachedBatches(train_images, seed=0, max_shift=0, flip=False)
    x, y = next(source.load([(0, list(range(40)))]))
    assert torch.equal((x / 255 - source.pixels.mean) / source.pixels.std, plain)
    assert y.tolist() == train_images.labels().tolist()


def test_without_a_classifier_the_loss_is_that_of_features_and_labels_do_not_count(train_images: ImageSet) -> None:
    rows, results = [], []
    for shift in (0, 1):
        job = make_job(train_images, variant="features", mixup=0.4, cutmix=1.0)
        given, labels = next(job.batches.steps(0, 1))
        images = job.on_device(given)
        seed_everything(job.settings.seed, 0)
        mixed = job.mixup(images.clone(), torch.zeros_like(labels))[0]
        job.student.train()
        expected = (job.student(mixed) - job.teacher(mixed)).square().mean()
        job.train_step(given, (labels + shift) % 5)
        rows.append(job.take_row())
        assert rows[-1]["loss"] == pytest.approx(expected.item(), rel=1e-4)
        results.append(job.student.state_dict())
    assert rows[0].keys() >= {"loss", "features", "lr"}
    assert not rows[0].keys() & {"ce", "kl"}
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
