from pathlib import Path

import pytest

from tests.support.small_run import small_home


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny teacher and images."""
    return small_home(tmp_path_factory.mktemp("home"))
