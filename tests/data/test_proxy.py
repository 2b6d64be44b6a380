"""Proxy sets are drawn by seed."""

import numpy as np
import pytest
import torch

from tests.support.errors import refused
from tests.support.pictures import COLOUR
from upvit_core.data import ImageSet, proxy_indices
from upvit_core.data.images import Pixels
from upvit_core.errors import DataError


class Labels:
    """A source of labels alone."""

    def __init__(self, counts: list[int]):
        self.labels = np.repeat(np.arange(len(counts)), counts)
        self.class_names, self.digest = tuple(map(str, counts)), ""


def labelled(counts: list[int]) -> ImageSet:
    source = Labels(counts)
    return ImageSet("set", "train", source.class_names, "", source=source, pixels=Pixels(source, COLOUR))  # type: ignore[arg-type]


def test_proxy_is_drawn_by_seed_without_touching_global_generators() -> None:
    images = labelled([300, 300, 400])
    np.random.seed(0)
    before, torch_before = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    first, same, other = (proxy_indices(images, 200, seed) for seed in (1, 1, 2))
    assert np.array_equal(np.random.get_state()[1], before)
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert len(set(first.tolist())) == 200
    assert np.array_equal(proxy_indices(images, 50, 1), first[:50])
    assert sorted(proxy_indices(images, 1000, 1)) == list(range(1000))


def test_balanced_proxy_takes_as_equally_as_it_can() -> None:
    images = labelled([100, 7, 50])
    for n, counts in ((30, [10, 10, 10]), (60, None), (157, [100, 7, 50])):
        chosen = proxy_indices(images, n, 3, balanced=True)
        assert len(set(chosen.tolist())) == n
        found = np.bincount(images.labels()[chosen], minlength=3)
        if n == 30:
            assert found[1] == 7
            assert sorted(found[[0, 2]]) == [11, 12]
        elif counts:
            assert found.tolist() == counts
        else:
            assert found[1] == 7
            assert abs(int(found[0]) - int(found[2])) <= 1
    assert np.bincount(images.labels()[proxy_indices(images, 6, 3, balanced=True)]).tolist() == [2, 2, 2]
    assert not np.array_equal(proxy_indices(images, 30, 3, balanced=True), proxy_indices(images, 30, 4, balanced=True))


@pytest.mark.parametrize("n", [0, -1, 11])
def test_a_proxy_larger_than_the_set_is_refused(n: int) -> None:
    with refused(DataError, str(n), "10"):
        proxy_indices(labelled([5, 5]), n, 0)
