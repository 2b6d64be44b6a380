"""The verbs of the command line. Each calls the function that the pages call; --json prints one JSON object."""

import typer

from upvit_core.cli import demo, elastic, mapping, models, planning, reporting, running, runs, scoring
from upvit_core.errors import UPViTError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Prune Vision Transformers: score, plan, cut, distil."
)
for verbs in (scoring, mapping, planning, models, elastic, running, runs, reporting):
    app.add_typer(verbs.app)
app.add_typer(demo.app, name="demo", no_args_is_help=True, help="The demo teacher.")


def main() -> None:
    """Entry point: an error of this project or of a path becomes one sentence on standard error and exit status 2."""
    try:
        app(standalone_mode=True)
    except UPViTError as error:
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None
    except OSError as error:
        if error.filename is None:
            raise
        typer.echo(
            f"Error: {error.filename2 or error.filename} cannot be used ({error.strerror}); give another path.",
            err=True,
        )
        raise SystemExit(2) from None
