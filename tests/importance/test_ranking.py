"""Ranking against channels written out by hand."""

import numpy as np
import pytest

from upvit_core.errors import PlanError
from upvit_core.importance.ranking import keep_in_merged_heads


def test_merging_puts_neighbours_together() -> None:
    values = np.array([9, 1, 8, 2, 7, 3, 6, 4], float)
    assert keep_in_merged_heads(values, 4, 2, 4).tolist() == [0, 2, 4, 6]
    assert keep_in_merged_heads(values, 4, 1, 4).tolist() == [0, 2, 4, 6]
    assert keep_in_merged_heads(values, 4, 4, 4).tolist() == [0, 2, 4, 6]
    with pytest.raises(PlanError, match="do not spread"):
        keep_in_merged_heads(values, 4, 2, 3)


@pytest.mark.parametrize("channels", [-2, 0, 10])
def test_a_merged_head_keeps_at_least_one_and_at_most_all_of_its_channels(channels: int) -> None:
    with pytest.raises(PlanError, match=f"{channels} attention channels do not spread evenly"):
        keep_in_merged_heads(np.arange(8.0), 4, 2, channels)
