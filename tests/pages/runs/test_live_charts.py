"""The live charts' messages: a picture once, then only what is new, however many runs there are."""

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.runs import live_charts
from pages.services import run_data
from tests.support.made_runs import made_run
from tests.support.server import server
from tests.support.session import Session
from upvit_core.figures.evaluations import Points
from upvit_core.runs import Run, RunStore

PAGE = "pages/runs/page.py"


def messages(test: AppTest) -> dict[str, Any]:
    """The messages of the two elements."""
    found = {element.proto.component_name: element.proto for element in test.get("bidi_component")}
    return {
        "picture": json.loads(found["runs_charts"].bytes),
        "feed": json.loads(found["runs_feed"].json),
        "whole": found["runs_charts"].SerializeToString(),
    }


def write(run: Run, count: int, first: int = 1000) -> None:
    for step in range(first, first + count):
        run.append_metrics({"step": step, "epoch": 3.0, "seconds": 9.0, "phase": "train", "loss": 0.5, "lr": 1e-3})


def test_the_picture_stays_and_the_feed_holds_what_is_new(page: Callable[..., AppTest], store: RunStore) -> None:
    made_run(store, 0.5)
    going = made_run(store, 0.4, "running", share=0.5)
    test = page(PAGE)
    first = messages(test)
    assert [run["label"] for run in first["picture"]["runs"]] == ["demo 40/40/40 %", "demo 50/50/50 %"]
    assert [run["train"][:2] for run in first["picture"]["runs"]] == [[0, 200], [0, 400]]
    assert first["picture"]["runs"][0]["teacher"]["top1"] == 91.7
    assert first["feed"]["add"] == []
    write(going, 3)
    with going.metrics.open("a") as file:
        file.write('{"step": 1003, "phase": "train", "lo')  # as it is while a worker writes
    then = messages(test.run())
    assert then["whole"] == first["whole"]
    (part,) = then["feed"]["add"]
    assert part["id"] == going.id
    assert part["train"][:2] == [200, 203]
    assert part["train"][2]["step"] == [1000, 1001, 1002]
    again, now = messages(test.run())["feed"]["add"]
    assert again == part  # for the browser to which the message before never came
    assert now["train"] == [203, 203, {}]
    assert messages(test.run())["feed"]["add"] == [again, now]
    for step in range(10 * live_charts.REPEATED):
        write(going, 1, 2000 + step)
        repeated = messages(test.run())["feed"]["add"]
    assert len(repeated) == live_charts.REPEATED
    assert all(before["train"][1] == after["train"][0] for before, after in pairwise(repeated))


def test_another_choice_is_another_picture(page: Callable[..., AppTest], store: RunStore) -> None:
    made_run(store, 0.5)
    made_run(store, 0.4)
    test = page(PAGE)
    first = messages(test)
    test.checkbox[0].uncheck().run()
    then = messages(test)
    assert len(then["picture"]["runs"]) == 1
    assert then["picture"]["epoch"] != first["picture"]["epoch"] == first["feed"]["epoch"]
    assert then["feed"]["epoch"] == then["picture"]["epoch"]


def test_a_file_that_was_replaced_is_told_anew(page: Callable[..., AppTest], store: RunStore) -> None:
    run = made_run(store, 0.5, "running", share=0.5)
    test = page(PAGE)
    first = messages(test)
    run.metrics.write_text(run.metrics.read_text()[:2000])
    then = messages(test.run())
    assert then["picture"]["epoch"] != first["picture"]["epoch"]
    assert then["picture"]["runs"][0]["train"][1] < 200


def test_bytes_and_reading_of_an_update_follow_the_new_lines(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    done = made_run(store, 0.5, evaluations=100)
    going = made_run(store, 0.4, "running", evaluations=100, share=0.5)
    read = run_data._Rows()
    chosen = [done.id, going.id]
    points: dict[str, Points] = {run: read.points(store, run) for run in chosen}
    told = live_charts.picture([{"id": run, "label": run} for run in chosen], points)
    sizes = []
    bytes_read: list[int] = []
    lines = RunStore.read_metrics

    def watched(self: RunStore, run_id: str, offset: int = 0) -> Any:
        rows, end = lines(self, run_id, offset)
        bytes_read.append(end - offset)
        return rows, end

    monkeypatch.setattr(RunStore, "read_metrics", watched)
    for count in (0, 1, 10, 100):
        before = os.path.getsize(going.metrics)
        write(going, count)
        bytes_read.clear()
        read.points(store, going.id)
        added = live_charts.news(told, points)
        assert sum(len(part["train"][2].get("step", [])) for part in added) == count
        assert sum(bytes_read) == os.path.getsize(going.metrics) - before
        sizes.append(len(json.dumps(added)))
    none, one, ten, hundred = sizes
    assert none < 10
    assert hundred - ten == pytest.approx(10 * (ten - one), rel=0.1)
    assert hundred < 100 * 40 + 400


def sent(home: Path, finished: int) -> list[int]:
    """Bytes that a real server sends for a tick of the page's timer after 0, 1 and 100 new lines."""
    store = RunStore(home / "runs")
    for _ in range(finished):
        made_run(store, 0.5, evaluations=100)
    going = made_run(store, 0.4, "running", evaluations=100, share=0.5)
    found = []
    with server(home, OMP_NUM_THREADS="1") as (address, _):
        session = Session(address, "runs")
        session.rerun()
        for count in (1, 0, 1, 100):
            write(going, count, 1000 * (len(found) + 1))
            before = session.received
            session.rerun(next(name for name, interval in session.fragments.items() if interval >= 1))
            found.append(session.received - before)
        session.close()
    assert session.errors == []
    return found[1:]


def test_an_update_of_the_page_sends_what_is_new_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    few, many = sent(tmp_path / "few", 3), sent(tmp_path / "many", 30)
    assert max(few[:2]) < 6_000
    assert few[2] - few[1] < 100 * 50
    for a_few, a_lot in zip(few, many, strict=True):
        assert abs(a_lot - a_few) < 300


def test_runs_on_other_images_stand_on_an_axis_of_their_own(page: Callable[..., AppTest], store: RunStore) -> None:
    made_run(store, 0.5)
    assert not page(PAGE).get("button_group")
    other = made_run(store, 0.4)
    spec = json.loads((other.folder / "spec.json").read_text())
    (other.folder / "spec.json").write_text(json.dumps({**spec, "data": "/data/flowers.tar.gz"}))
    lines = other.metrics.read_text().replace('"images": 2000', '"images": 777')
    other.metrics.write_text(lines)
    test = page(PAGE)
    choice = test.get("button_group")[0]
    assert [option.content for option in choice.proto.options] == ["flowers.tar.gz", "demo"]
    first = messages(test)
    assert {run["data"] for run in first["picture"]["runs"]} == {"demo", "/data/flowers.tar.gz"}
    assert (first["feed"]["view"]["of"], first["feed"]["view"]["titles"]["y"]) == (
        "/data/flowers.tar.gz", "top-1, % of 777 test images",
    )  # fmt: skip
    test.session_state["tested-on"] = "demo"
    then = messages(test.run())
    assert then["whole"] == first["whole"]
    assert (then["feed"]["view"]["of"], then["feed"]["view"]["titles"]["y"]) == (
        "demo",
        "top-1, % of 2,000 test images",
    )
