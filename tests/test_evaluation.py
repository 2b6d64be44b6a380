import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from upvit_core.errors import Cancelled, DataError
from upvit_core.evaluation import (
    Evaluation,
    doubt,
    evaluate,
    kl_by_image,
    outcomes_of,
    predict,
    run_teacher,
    wilson_interval,
)
from upvit_core.models.checkpoint import load_model
from upvit_core.records.known_shapes import deit_shape


def slow_kl(teacher: list[float], student: list[float]) -> float:
    def softmax(row: list[float]) -> list[float]:
        total = sum(math.exp(v) for v in row)
        return [math.exp(v) / total for v in row]

    return sum(q * math.log(q / p) for q, p in zip(softmax(teacher), softmax(student), strict=True))


def test_scores_equal_a_slow_count() -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(40, 12), torch.randn(40, 12)
    labels = torch.randint(0, 12, (40,))
    order = [sorted(range(12), key=lambda c: -row[c]) for row in logits.tolist()]
    result = outcomes_of(logits, labels, teacher).summary()
    truth = labels.tolist()
    assert result.images == 40
    assert result.top1 == 100 * sum(o[0] == y for o, y in zip(order, truth, strict=True)) / 40
    assert result.top5 == 100 * sum(y in o[:5] for o, y in zip(order, truth, strict=True)) / 40
    slow = sum(slow_kl(q, p) for q, p in zip(teacher.tolist(), logits.tolist(), strict=True)) / 40
    assert result.kl == pytest.approx(slow, rel=1e-6)
    each = [slow_kl(q, p) for q, p in zip(teacher.tolist(), logits.tolist(), strict=True)]
    stderr = math.sqrt(sum((v - slow) ** 2 for v in each) / 39) / math.sqrt(40)
    assert result.kl_interval == pytest.approx((slow - 1.959964 * stderr, slow + 1.959964 * stderr), rel=1e-5)
    ce = (
        -sum(math.log(math.exp(r[y]) / sum(map(math.exp, r))) for r, y in zip(logits.tolist(), truth, strict=True)) / 40
    )
    assert result.loss == pytest.approx(ce, rel=1e-6)


def test_kl_is_directed_and_zero_to_itself() -> None:
    a, b = torch.tensor([[3.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.5, 0.0]])
    assert kl_by_image(a, a).item() == 0
    assert kl_by_image(a, b).item() == pytest.approx(slow_kl(a[0].tolist(), b[0].tolist()))
    assert kl_by_image(a, b).item() != pytest.approx(kl_by_image(b, a).item())


def test_fewer_than_five_classes() -> None:
    result = outcomes_of(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 0])).summary()
    assert (result.top1, result.top5, result.kl) == (50, 100, None)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)  # Newcombe, Statistics in Medicine 1998, table I, method 3
def test_wilson_interval_equals_published_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_refuses_what_is_no_share() -> None:
    with pytest.raises(ValueError, match="7 successes of 5"):
        wilson_interval(7, 5)


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(4, 6, generator=generator), torch.arange(4)) for _ in range(count)]


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored_and_dropout_is_off(training: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5)).train(training)
    first, second = evaluate(model, batches(2)), evaluate(model, batches(2))
    assert first == second
    assert model.training is training


def test_progress_counts_images_and_may_stop() -> None:
    model, seen = nn.Linear(6, 5).train(), []

    def stop(done: int) -> None:
        seen.append(done)
        if done == 8:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        predict(model, batches(3), progress=stop)
    assert seen == [4, 8]
    assert model.training


@pytest.mark.parametrize(
    ("images", "top1", "confidence", "words"),
    [
        (500, 11.0, 30.0, "guessing would give 10.0 %"),
        (100, 36.0, 92.0, "the model is 92 % sure"),
        (10, 10.0, 60.0, ""),
        (1000, 60.0, 92.0, ""),
        (1000, 25.0, 45.0, ""),
    ],
)
def test_a_model_that_should_be_good_is_doubted_by_enough_images(
    images: int, top1: float, confidence: float, words: str, tmp_path: Path
) -> None:
    result = Evaluation(images, top1, 50.0, 2.0, confidence=confidence)
    loaded = replace(load_model("demo"), source=str(tmp_path))
    sentence = doubt(loaded, result)
    assert words in sentence
    assert bool(sentence) == bool(words)
    assert not sentence or "normalisation" in sentence
    assert not doubt(replace(loaded, has_weights=False), result)
    (tmp_path / "plan.json").touch()
    assert not doubt(loaded, result), "a cut is ruined honestly"


def test_no_image_is_an_error() -> None:
    with pytest.raises(DataError, match="no image"):
        predict(nn.Linear(2, 2), [])


@pytest.mark.parametrize("tokens", [(), (3,)])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_batches_reduced_one_by_one_give_the_numbers_of_all_logits_at_once(
    tokens: tuple[int, ...], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upvit_core.evaluation.REDUCED_BYTES", rows * 8 * 5)
    torch.manual_seed(1)
    model, teacher = nn.Linear(6, 5), nn.Linear(6, 5)
    data = [(torch.randn(size, *tokens, 6), torch.randint(0, 5, (size, *tokens))) for size in (4, 7, 1)]
    logits, labels = predict(model, data)
    reference, _ = predict(teacher, data)
    losses = nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    log_p, log_q = logits.double().log_softmax(-1), reference.double().log_softmax(-1)
    kl = nn.functional.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
    n = len(labels)
    expected = Evaluation(
        images=12 * math.prod(tokens),
        top1=100 * (logits.argmax(-1) == labels).sum().item() / n,
        top5=100.0,
        loss=losses.mean().item(),
        kl=kl.mean().item(),
        kl_stderr=kl.std().item() / math.sqrt(n),
        loss_stderr=losses.std().item() / math.sqrt(n),
        confidence=100 * logits.double().softmax(-1).amax(-1).mean().item(),
    )
    assert evaluate(model, data, teacher_logits=reference) == expected
    assert evaluate(model, data, teacher=teacher) == expected


def test_a_teacher_s_logits_are_kept_only_while_they_are_few() -> None:
    model = nn.Linear(6, 5)
    data = batches(3)
    logits, _ = predict(model, data)
    kept = run_teacher(model, data, most_bytes=logits.nbytes)
    assert torch.equal(kept.logits, logits)
    assert kept.outcomes.summary() == evaluate(model, data)
    assert run_teacher(model, data, most_bytes=logits.nbytes - 1).logits is None


def test_memory_that_runs_out_halves_the_batch_and_changes_no_number() -> None:
    model, teacher = nn.Linear(6, 5), nn.Linear(6, 5)
    data = [(torch.randn(13, 6), torch.arange(13) % 5)]
    logits, _ = predict(teacher, data)
    expected = evaluate(model, data, teacher_logits=logits)

    def full(module: nn.Module, given: tuple[torch.Tensor]) -> None:
        if len(given[0]) > 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    for each in (model, teacher):
        each.register_forward_pre_hook(full)
    for named in ({"teacher_logits": logits}, {"teacher": teacher}):
        found = evaluate(model, data, **named)
        assert (found.kl, found.loss, found.top1) == pytest.approx((expected.kl, expected.loss, expected.top1))


def test_batches_are_chosen_by_the_bytes_of_their_outputs() -> None:
    large = deit_shape("base")
    small = replace(large, img_size=(28, 28), num_classes=10)
    assert [shape.batch_size(250, large=16) for shape in (small, large)] == [250, 16]
    assert [shape.batch_size(32, large=8) for shape in (small, large)] == [32, 8]
    assert large.batch_size(100) == 100
    demo = replace(small, family="gpt2", img_size=(1, 64), patch_size=(1, 1), num_prefix_tokens=0, num_classes=512)
    assert (demo.is_small, demo.output_bytes, demo.batch_size(250, large=16)) == (True, 4 * 64 * 512, 250)
    gpt2 = replace(demo, img_size=(1, 1024), num_classes=50257)
    assert (gpt2.is_small, gpt2.output_bytes, gpt2.batch_size(250, large=16)) == (False, 4 * 1024 * 50257, 1)


GPT2_IN_LITTLE_MEMORY = """
import resource
import torch
from upvit_core.evaluation import evaluate
from upvit_core.models.build import build_model
from upvit_core.models.gpt2 import language_shape, random_inputs
from upvit_core.profiling.memory import estimate_memory
from upvit_core.records.shape import BlockShape

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
shape = language_shape("g", vocabulary=50257, context=1024, embed_dim=64, blocks=(BlockShape(2, 64, 256),))
model, teacher = build_model(shape, seed=0), build_model(shape, seed=1)
tokens = random_inputs(shape, 3)
batches = [(tokens[i : i + 1], tokens[i : i + 1].roll(-1, 1)) for i in range(3)]
before = peak()
evaluate(model, batches)
alone = peak() - before
evaluate(model, batches, teacher=teacher)
together = peak() - before
block = estimate_memory(shape, 1).activations
print(alone / block, together / block)
"""


def test_a_gpt2_of_real_context_and_vocabulary_is_evaluated_block_by_block() -> None:
    """Beyond the weights: the forecast of one forward pass, of two with a teacher, and as much for the rest."""
    pytest.importorskip("transformers")
    done = subprocess.run([sys.executable, "-c", GPT2_IN_LITTLE_MEMORY], capture_output=True, text=True, check=True)
    alone, together = map(float, done.stdout.split())
    assert alone < 2
    assert together < 3
