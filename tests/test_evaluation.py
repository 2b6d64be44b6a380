import math

import pytest
import torch
from torch import nn

from upvit_core.errors import Cancelled, DataError
from upvit_core.evaluation import evaluate, mean_kl, predict, score_logits, wilson_interval


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
    result = score_logits(logits, labels, teacher)
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
    assert mean_kl(a, a) == 0
    assert mean_kl(a, b) == pytest.approx(slow_kl(a[0].tolist(), b[0].tolist()))
    assert mean_kl(a, b) != pytest.approx(mean_kl(b, a))


def test_fewer_than_five_classes() -> None:
    result = score_logits(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 0]))
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


def test_no_image_is_an_error() -> None:
    with pytest.raises(DataError, match="no image"):
        predict(nn.Linear(2, 2), [])
