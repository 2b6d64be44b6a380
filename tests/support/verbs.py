"""Call a verb of the command line in this process."""

import json
from typing import Any

from typer.testing import CliRunner

from upvit_core.cli import app


def call(*arguments: object) -> dict[str, Any]:
    """The JSON object that a verb prints; an error of the verb is raised."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return values
