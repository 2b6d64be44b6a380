"""Times that people wait for the studio, and its costs on the server.

python -m tests.benchmarks.app waits         a slider's rerun and picture at DeiT-B's size; a click on a channel
python -m tests.benchmarks.app visitors      thirty people at once on the demo's sliders
python -m tests.benchmarks.app live          an update of Runs with 10 and 100 finished runs and 5 that go on
python -m tests.benchmarks.app first-visit   a stranger's first minutes in Chromium, up to a distilled demo
python -m tests.benchmarks.app previews      cut and evaluate a plan of the demo, as Trade-off does
python -m tests.benchmarks.app step          where the time of a training step goes
python -m tests.benchmarks.app run-list      list 300 runs with DeiT-B's plans
python -m tests.benchmarks.app time-left     the time left that exact scoring reports against what it took
python -m tests.benchmarks.app cancel        the longest time in which scoring DeiT-B cannot be cancelled

Commands with a target print it beside the number and exit with 1 where it is missed.
"""

import typer

from tests.benchmarks.app import chromium, library, websocket

app = typer.Typer(help=__doc__, rich_markup_mode=None)
for module in (websocket, chromium, library):
    app.registered_commands += module.app.registered_commands

if __name__ == "__main__":
    app()
