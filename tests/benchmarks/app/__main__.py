"""Times that people wait for the studio, and its costs on the server.

python -m tests.benchmarks.app waits         a slider's rerun and picture at DeiT-B's size; a click on a channel
python -m tests.benchmarks.app visitors      thirty people at once on the demo's sliders
python -m tests.benchmarks.app live          an update of Runs with 10 and 100 finished runs and 5 that go on
python -m tests.benchmarks.app first-visit   a stranger's first minutes in Chromium, up to a distilled demo

Commands with a target print it beside the number and exit with 1 where it is missed.
"""

import typer

from tests.benchmarks.app import chromium, websocket

app = typer.Typer(help=__doc__, rich_markup_mode=None)
for module in (websocket, chromium):
    app.registered_commands += module.app.registered_commands

if __name__ == "__main__":
    app()
