from collections.abc import Iterator

import pytest

from tests.support.own_slurm import missing, slurm


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if why := missing():
        pytest.skip(why)
    with slurm(tmp_path_factory.mktemp("slurm") / "own") as environment:
        yield environment


@pytest.fixture
def cluster(_cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A Slurm of two nodes with two CPUs each, to be found by this process."""
    for key in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(key, _cluster[key])
    return _cluster
