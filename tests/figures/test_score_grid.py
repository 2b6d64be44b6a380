"""Arranged scores are cached between the threads of all sessions."""

import numpy as np

from tests.figures.test_figures import SMALL, made_up
from tests.support.at_once import at_once
from upvit_core.figures.score_grid import logs_of, ranking_of


def test_threads_that_arrange_many_records_at_once_do_not_disturb_each_other() -> None:
    records = [made_up(SMALL).with_values({"residual": np.arange(24.0) + n}) for n in range(100)]
    digests = [record.digest for record in records]
    assert len(set(digests)) == len(records)

    def work(seed: int) -> None:
        for number in np.random.default_rng(seed).permutation(len(records)).tolist() * 8:
            logs_of(records[number], "residual", (0,))
            ranking = ranking_of(records[number], "residual", (0,), 1)
            assert ranking.tolist() == [list(range(24))[::-1]]

    at_once(work, 8)
