"""Progressive block pruning against the slow oracle and a naive loop over whole models."""

import copy
import json
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.oracle import reference
from tests.support.tiny import VARIANTS, TensorProxy, images, kl_sum, tiny
from upvit_core.errors import Cancelled, ScoresError
from upvit_core.importance.blocks import remove_blocks
from upvit_core.models.build import adapt
from upvit_core.records.block_removals import BlockRemovals, half_name

DEEP = "3 heads, 5 blocks"


class Silent(nn.Module):
    """A half-block that is gone adds nothing to the stream."""

    def forward(self, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return torch.zeros_like(x)


def naive_kl(model, x, left) -> float:
    """Summed KL to `model` of a whole timm model in which all half-blocks but `left` add nothing."""
    thin = copy.deepcopy(model)
    for b, block in enumerate(thin.blocks):
        if 2 * b not in left:
            block.attn = Silent()
        if 2 * b + 1 not in left:
            block.mlp = Silent()
    return kl_sum(model, thin, x)


@pytest.mark.parametrize("variant", VARIANTS)
def test_first_removal_equals_the_oracle(variant: str) -> None:
    model, shape = tiny(variant)
    record = remove_blocks(adapt(model, shape), TensorProxy(images()), shape.depth - 1)
    assert len(record.steps) == 1
    candidates = record.steps[0].candidates
    assert len(candidates) == 2 * shape.depth - 1
    for candidate in candidates:
        expected = float(reference.block_removal_kl(model, images(), candidate.halves))
        assert candidate.kl == pytest.approx(expected, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("variant", VARIANTS)
def test_whole_removal_equals_a_naive_loop(variant: str) -> None:
    model, shape = tiny(variant)
    x = images(5)
    record = remove_blocks(adapt(model, shape), TensorProxy(x), 1, image_batch=2)
    left = list(range(2 * shape.depth))
    for step in record.steps:
        scores = {}
        for first, second in pairwise(left):
            scores[first, second] = naive_kl(model, x, [half for half in left if half not in (first, second)])
        for candidate in step.candidates:
            assert candidate.kl == pytest.approx(scores.pop(candidate.halves), rel=1e-9, abs=1e-13)
        assert not scores
        assert step.kl == min(c.kl for c in step.candidates)
        left = [half for half in left if half not in step.removed]
    assert record.remaining(1) == tuple(left)
    assert record.least_depth == 1


def test_standard_error_is_that_of_a_sum_over_images() -> None:
    model, shape = tiny()
    x = images(7)
    first = remove_blocks(adapt(model, shape), TensorProxy(x), 2, image_batch=3).steps[0].candidates[1]
    each = [naive_kl(model, one[None], [half for half in range(6) if half not in first.halves]) for one in x]
    assert first.stderr == pytest.approx(np.std(each, ddof=1) * 7**0.5, rel=1e-9)
    one = remove_blocks(adapt(model, shape), TensorProxy(x[:1]), shape.depth - 1)
    assert one.steps[0].candidates[0].stderr is None


def test_against_another_teacher() -> None:
    original, shape = tiny(DEEP)
    model = copy.deepcopy(original)
    with torch.no_grad():
        model.blocks[2].mlp.fc2.weight.mul_(0.5)
    x = images(4)
    record = remove_blocks(adapt(model, shape), TensorProxy(x), 4, teacher=adapt(original, shape))
    for candidate in record.steps[0].candidates:
        gone = copy.deepcopy(model)
        for half in candidate.halves:
            setattr(gone.blocks[half // 2], "mlp" if half % 2 else "attn", Silent())
        assert candidate.kl == pytest.approx(kl_sum(original, gone, x), rel=1e-9)


def counting(adapter, monkeypatch) -> list[tuple[int, bool]]:
    calls = []
    run = adapter.run_half_block

    def counted(half, x, *, previous=None, last=False):
        calls.append((half, last))
        return run(half, x, previous=previous, last=last)

    monkeypatch.setattr(adapter, "run_half_block", counted)
    return calls


def test_no_stream_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """With memory enough, each sequence of half-blocks is passed once a batch, over all steps together."""
    model, shape = tiny(DEEP)
    adapter = adapt(model, shape)
    calls = counting(adapter, monkeypatch)
    record = remove_blocks(adapter, TensorProxy(images(4)), 2, image_batch=2)
    left, passed = list(range(2 * shape.depth)), set()

    def walk(path) -> None:
        for end in range(1, len(path) - 1):
            passed.add((tuple(path[:end]), "all tokens"))
        for end in (len(path) - 1, len(path)):
            passed.add((tuple(path[:end]), "the head's tokens"))

    walk(left)
    for step in record.steps:
        passed |= {(tuple(left[:end]), "all tokens") for end in range(1, len(left) - 1)}
        for place in range(len(left) - 2):
            path = left[:place] + left[place + 2 :]
            for end in range(place + 1, len(path) + 1):
                passed.add((tuple(path[:end]), "all tokens" if end < len(path) - 1 else "the head's tokens"))
        left = [half for half in left if half not in step.removed]
    assert len(calls) <= 2 * len(passed)
    calls.clear()
    again = remove_blocks(adapter, TensorProxy(images(4)), 2, image_batch=2, memory_mb=0)
    assert len(calls) > 2 * len(passed)
    assert again.steps == record.steps, "what is kept in memory does not change a single bit"


def test_does_not_depend_on_batching() -> None:
    model, shape = tiny(DEEP)
    a = remove_blocks(adapt(model, shape), TensorProxy(images(9)), 1)
    b = remove_blocks(adapt(model, shape), TensorProxy(images(9)), 1, image_batch=2)
    assert [step.removed for step in a.steps] == [step.removed for step in b.steps]
    for one, other in zip(a.steps, b.steps, strict=True):
        np.testing.assert_allclose([c.kl for c in one.candidates], [c.kl for c in other.candidates], rtol=1e-9)


@pytest.mark.parametrize("stop_at", [1, 17, 30])
def test_a_killed_run_goes_on_and_gives_the_same_numbers(tmp_path, stop_at: int) -> None:
    model, shape = tiny()
    proxy, journal = TensorProxy(images(8)), tmp_path / "journal.jsonl"
    whole = remove_blocks(adapt(model, shape), proxy, 1, image_batch=3)
    seen = []

    def stop(progress) -> None:
        seen.append(progress.done)
        if len(seen) == stop_at:
            raise Cancelled("stopped by the test")

    if stop_at < 24:
        with pytest.raises(Cancelled):
            remove_blocks(adapt(model, shape), proxy, 1, image_batch=3, journal=journal, report=stop)
    else:
        remove_blocks(adapt(model, shape), proxy, 2, image_batch=3, journal=journal, report=stop)
    with journal.open("ab") as file:
        file.write(b'{"piece": "1/2/0", "sum": 0.1')
    first = []
    resumed = remove_blocks(adapt(model, shape), proxy, 1, image_batch=3, journal=journal, report=first.append)
    assert resumed.steps == whole.steps
    assert len(first) == 24 - len(seen), "finished candidates were computed again"
    assert first[-1].share == 1.0
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    nothing = []
    remove_blocks(adapt(model, shape), proxy, 1, image_batch=3, journal=journal, report=nothing.append)
    assert nothing == []


def test_a_journal_of_another_model_is_refused(tmp_path) -> None:
    journal = tmp_path / "journal.jsonl"
    remove_blocks(adapt(*tiny("class token")), TensorProxy(images(2)), 2, journal=journal)
    with pytest.raises(ScoresError, match="another model"):
        remove_blocks(adapt(*tiny("distilled")), TensorProxy(images(2)), 2, journal=journal)


def test_progress_counts_up_to_the_whole_and_every_step_is_told() -> None:
    progress, records = [], []
    adapter = adapt(*tiny())
    remove_blocks(adapter, TensorProxy(images(4)), 1, image_batch=2, report=progress.append, on_step=records.append)
    shares = [p.share for p in progress]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert progress[0].what == "removal 1 of 2: A0 F0 on images 0…"
    assert [record.least_depth for record in records] == [2, 1]


@pytest.mark.parametrize("depth", [0, 3, 7])
def test_a_depth_out_of_reach_is_refused(depth: int) -> None:
    with pytest.raises(ScoresError, match=f"a depth of 1 to 2 can be reached, not {depth}"):
        remove_blocks(adapt(*tiny()), TensorProxy(images(2)), depth)


def test_memory_too_small_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = adapt(*tiny())

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(adapter, "run_half_block", full)
    with pytest.raises(ScoresError, match="lower image_batch"):
        remove_blocks(adapter, TensorProxy(images(2)), 2)


def test_leaves_the_model_as_it_was() -> None:
    model, shape = tiny()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        remove_blocks(adapt(model, shape), TensorProxy(images(2)), 1)
        assert model.training
        assert all(p.requires_grad for p in model.parameters())
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    finally:
        model.eval()


@cache
def record() -> BlockRemovals:
    return remove_blocks(adapt(*tiny(DEEP)), TensorProxy(images(3)), 2)


def test_round_trip(tmp_path) -> None:
    made = record()
    made.save(tmp_path / "blocks.json")
    again = BlockRemovals.load(tmp_path / "blocks.json")
    assert again == made
    assert again.digest == made.digest
    assert [half_name(half) for half in (0, 1, 6, 7)] == ["A0", "F0", "A3", "F3"]
    assert again.remaining(5) == tuple(range(10))
    with pytest.raises(ScoresError, match="from 5 to 2 blocks, not to 1"):
        again.remaining(1)


BREAKS = [
    (lambda r: r.update(images=0), "images"),
    (lambda r: r["steps"][0].update(removed=[8, 9] if r["steps"][0]["removed"] != [8, 9] else [0, 1]), "scores least"),
    (lambda r: r["steps"][0]["candidates"].pop(), "9 neighbours"),
    (lambda r: r["steps"][1]["candidates"].reverse(), "7 neighbours"),
    (lambda r: r["steps"][0]["candidates"][0].update(kl="high"), "kl"),
    (lambda r: r["steps"].extend(r["steps"]), "leave nothing"),
    (lambda r: r.update(source_shape={}), "malformed"),
    (lambda r: r.update(source_shape={"blocks": 3}), "malformed"),
    (lambda r: r.update(extra=1), "Extra|extra"),
]


@pytest.mark.parametrize(("change", "message"), BREAKS)
def test_malformed_records_are_refused_in_one_sentence(change, message: str) -> None:
    content = json.loads(record().to_json())
    change(content)
    with pytest.raises(ScoresError, match=message) as caught:
        BlockRemovals.from_json(json.dumps(content))
    assert "\n" not in str(caught.value)


def test_not_a_number_is_refused() -> None:
    text = record().to_json()
    content = json.loads(text)
    content["steps"][0]["candidates"][0]["kl"] = float("nan")
    with pytest.raises(ScoresError):
        BlockRemovals.from_json(json.dumps(content))


FIELDS = ["steps", "candidates", "halves", "kl", "removed", "source_shape", "images", "version", "blocks"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(ANYTHING)
def test_random_json_never_crashes(content) -> None:
    with pytest.raises(ScoresError):
        BlockRemovals.from_json(json.dumps(content))


def test_a_missing_file_is_one_sentence(tmp_path) -> None:
    with pytest.raises(ScoresError, match="make one with `score-blocks`"):
        BlockRemovals.load(tmp_path / "none.json")


def test_float32_stays_close() -> None:
    x = images(6, torch.float32)
    exact = remove_blocks(adapt(*tiny(DEEP)), TensorProxy(x.double()), 2)
    single = remove_blocks(adapt(*tiny(DEEP, torch.float32)), TensorProxy(x), 2)
    for one, other in zip(exact.steps, single.steps, strict=True):
        assert one.removed == other.removed
        np.testing.assert_allclose([c.kl for c in one.candidates], [c.kl for c in other.candidates], rtol=1e-4)


def test_a_stock_timm_name_of_another_depth_agrees() -> None:
    """The record's end is what stock timm computes when it is built at that depth with the surviving halves."""
    model, shape = tiny(DEEP)
    made = remove_blocks(adapt(model, shape), TensorProxy(images(4)), 3)
    left = made.remaining(3)
    stock = timm.create_model(
        "deit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=12, depth=3, num_heads=3, num_classes=5
    ).double().eval()  # fmt: skip
    state = {name: t for name, t in model.state_dict().items() if not name.startswith("blocks.")}
    for number in range(3):
        for half, parts in ((left[2 * number], ("norm1.", "attn.")), (left[2 * number + 1], ("norm2.", "mlp."))):
            prefix = f"blocks.{half // 2}."
            for name, tensor in model.state_dict().items():
                if name.startswith(tuple(prefix + part for part in parts)):
                    state[f"blocks.{number}.{name.removeprefix(prefix)}"] = tensor
    stock.load_state_dict(state)
    assert made.step_to(3).kl == pytest.approx(kl_sum(model, stock, images(4)), rel=1e-9)
