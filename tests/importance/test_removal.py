import pytest
import torch

from tests.oracle.reference import kl_scores
from tests.support.tiny import VARIANTS, TensorProxy, images, tiny
from upvit_core.errors import Cancelled, ScoresError
from upvit_core.importance.removal import remove_one, streams
from upvit_core.models.build import adapt


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_agrees_with_physical_removal(variant: str) -> None:
    model, shape = tiny(variant)
    proxy = TensorProxy(images(5))
    reference = kl_scores(model, proxy.tensor)
    adapter = adapt(model, shape)
    for key, channel in (("residual", 3), ("attention.1", 5), (f"attention.{shape.depth - 1}", 2), ("ffn.0", 7)):
        result = remove_one(adapter, proxy.batches(2), key, channel)
        torch.testing.assert_close(result.kl.sum(), reference[key][channel], rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(result.before, model(proxy.tensor), rtol=1e-9, atol=1e-9)
        assert result.changed.tolist() == (result.before.argmax(1) != result.after.argmax(1)).tolist()
        kept = streams(adapter, proxy.batches(2))
        assert kept is not None
        again = remove_one(adapter, kept, key, channel)
        torch.testing.assert_close(again.before, result.before, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(again.after, result.after, rtol=1e-12, atol=1e-12)


def test_streams_that_would_take_too_much_are_not_kept() -> None:
    model, shape = tiny()
    adapter, seen = adapt(model, shape), []
    batches = list(TensorProxy(images(6)).batches(2))
    size = 2 * shape.depth * adapter.embed(images(1)).nbytes
    assert streams(adapter, batches, seen.append, most_bytes=3 * size) is not None
    assert seen == [2, 4, 6]
    assert streams(adapter, batches, seen.append, most_bytes=2 * size) is None
    assert seen == [2, 4, 6, 2, 4]


def test_a_channel_that_is_not_there_is_refused() -> None:
    model, shape = tiny()
    adapter = adapt(model, shape)
    with pytest.raises(ScoresError, match="Channel 99 of residual cannot be removed"):
        remove_one(adapter, [], "residual", 99)
    with pytest.raises(ScoresError, match=r"no part 'ffn\.9'"):
        remove_one(adapter, [], "ffn.9", 0)


def test_progress_counts_images_and_can_stop() -> None:
    model, shape = tiny()
    seen: list[int] = []

    def stop_at_four(done: int) -> None:
        seen.append(done)
        if done >= 4:
            raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        remove_one(adapt(model, shape), TensorProxy(images(6)).batches(2), "ffn.0", 0, stop_at_four)
    assert seen == [2, 4]
    assert model.training is False
