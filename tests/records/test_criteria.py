"""Every criterion of the table can be made, and the command line names it."""

import pytest
from typer.testing import CliRunner

from tests.support.tiny import tiny
from upvit_core.cli import app
from upvit_core.importance.criterion import Request
from upvit_core.importance.score import make_criterion
from upvit_core.records.criteria import CRITERIA


@pytest.mark.parametrize("name", CRITERIA)
def test_criterion_is_made_by_its_name(name: str) -> None:
    assert make_criterion(name, Request(tiny()[1])).name == name


def test_help_names_every_criterion() -> None:
    help_text = CliRunner().invoke(app, ["score", "--help"], env={"COLUMNS": "1000", "TERM": "dumb"}).output
    for name, entry in CRITERIA.items():
        assert f"{name}: {entry.menu}" in help_text
