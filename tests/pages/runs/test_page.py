import json
import os
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from streamlit.testing.v1 import AppTest

from pages.runs.table import COSINE
from pages.services import jobs, run_data
from pages.widgets import run_actions
from tests.support.made_runs import made_run, made_store
from tests.support.reading import check, html_of
from tests.support.small_run import wait_until
from upvit_core.errors import RunError
from upvit_core.records.by_class import Answered
from upvit_core.runs import RunState, RunStore
from upvit_core.runs.commands import commands
from upvit_core.runs.forecast import forecast, outcomes
from upvit_core.training.settings import PRESETS

PAGE = "pages/runs/page.py"
Run = Callable[..., AppTest]


def test_without_runs_it_says_what_will_be_here(page: Run) -> None:
    test = page(PAGE)
    assert not test.exception
    assert "will be a curve here" in test.info[0].value
    test.button(key="new-run").click().run()
    assert [b.label for b in test.button if b.key == "first-run"] == [
        "Distil Demo ViT at 50/50/50 %, 6 heads, directions, repaired"
    ]


def test_every_kind_of_run_is_listed_with_its_state(page: Run, store: RunStore) -> None:
    made_store(store.root)
    test = page(PAGE)
    check(test)
    text = html_of(test)
    for state in ("queued 1st", "running 43 %, 46 s left", "interrupted at 50 %", "cancelled at 30 %", "done 88.1 %"):
        assert state in text
    assert [c.label for c in test.checkbox][:2] == ["demo 70/70/70 %", "demo 65/65/65 %"]
    assert "demo 50/50/50 % from scratch" in [c.label for c in test.checkbox]
    labels = [b.label for b in test.button]
    assert labels.count("Cancel") == 2
    assert labels.count("Resume") == 2
    table = test.dataframe[0].value.set_index("Run")
    assert table.loc["demo 50/50/50 %", "against scratch, points"] == 0  # the made-up baseline is as good
    assert table.loc["demo 25/25/25 %", "Speed, × original"] == pytest.approx(1 / 0.75**1.3)
    assert table.loc["demo 75/75/75 %", "Parameters"] == "45.27 k"


def test_the_table_has_the_cosine_of_runs_without_a_classifier_alone(page: Run, store: RunStore) -> None:
    run = made_run(store, 0.5)
    assert COSINE not in page(PAGE).dataframe[0].value
    run.metrics.write_text(run.metrics.read_text().replace('"kl_teacher"', '"cosine": 0.875, "kl_teacher"'))
    run_data.rows.clear()
    assert page(PAGE).dataframe[0].value[COSINE].tolist() == [0.875]


def test_what_the_run_in_focus_forgets_is_told_class_by_class(page: Run, store: RunStore) -> None:
    run = made_run(store, 0.5)
    assert "Class by class" not in html_of(page(PAGE))
    kept = Answered(names=["cat", "dog", "*newt*"], labels=[0, 0, 1, 2], before=[0, 0, 1, 1], after=[0, 2, 1, 2])
    (run.folder / "classes.json").write_text(kept.model_dump_json())
    test = page(PAGE)
    check(test)
    text = html_of(test)
    assert "4 images of 3 classes: 1 right answers become wrong, 1 wrong ones right" in text
    for cells in (("cat", "100.0\u00a0%", "50.0\u00a0%", "−50.0", "2"), ("cat", "*newt*", "1")):
        assert "".join(f"<td>{cell}</td>" for cell in cells) in text


def test_a_broken_folder_is_named_and_hides_nothing(page: Run, store: RunStore) -> None:
    made_run(store, 0.5)
    broken = made_run(store, 0.25)
    (broken.folder / "spec.json").write_text("{")
    test = page(PAGE)
    assert not test.exception
    assert broken.id in [c.label for c in test.checkbox]
    assert any("not a valid run" in c.value for c in test.caption)
    assert len(test.dataframe[0].value) == 1


def test_hidden_runs_leave_the_table_but_not_the_list(page: Run, store: RunStore) -> None:
    made_store(store.root)
    test = page(PAGE)
    test.checkbox[0].uncheck().run()
    assert len(test.dataframe[0].value) == 7
    assert len(test.checkbox) == 8


def test_cancel_asks_first(page: Run, store: RunStore) -> None:
    made_run(store, 0.5, "running", share=0.5)
    test = page(PAGE)
    next(b for b in test.button if b.label == "Cancel").click().run()
    assert not test.exception
    assert {b.label for b in test.button} >= {"Cancel the run", "Let it go on"}
    assert store.list()[0].state.state == "running"


def test_a_run_is_renamed_and_deleted_and_never_by_one_click(page: Run, store: RunStore) -> None:
    run, going = made_run(store, 0.5), made_run(store, 0.4, "running", share=0.5)
    test = page(PAGE)
    test.text_input(key=f"rename-{run.id}").set_value("**half**").run()
    assert store.get(run.id).spec.name == "**half**"
    assert r"\*\*half\*\*" in [c.label for c in test.checkbox]
    test.text_input(key=f"rename-{run.id}").set_value(" ").run()
    assert any("is not a name of a run" in error.value for error in test.error)
    assert test.button(key=f"delete-{going.id}").disabled
    test.button(key=f"delete-{run.id}").click().run()
    assert run.folder.exists()
    test.button(key="delete-yes").click().run()
    check(test)
    assert not run.folder.exists()
    assert [s.id for s in store.list()] == [going.id]


def test_a_card_says_what_was_reached_beside_the_original(page: Run, store: RunStore) -> None:
    done, going = made_run(store, 0.5), made_run(store, 0.4, "running", share=0.5)
    text = html_of(page(PAGE))
    for run in (done, going):
        state = store.state(run.id)
        assert f"<b>{state.top1:.1f} %</b>" in text
    state = store.state(done.id)
    assert f"{state.top1 - state.teacher_top1:+.1f} to the original".replace("-", "−") in text
    assert "of 91.7 · running 50 %" in text
    rows = [row for row in store.read_metrics(done.id)[0] if row["phase"] in ("surgery", "eval", "final")]
    points = " ".join(f"{84 * row['epoch'] / 4:.1f},{26 * (1 - row['top1'] / 100):.1f}" for row in rows)
    assert quote(f'points="{points}"') in text


@pytest.mark.parametrize(("waiting", "workers"), [(0.04, 2), (0.43, 2), (0.43, None)])
def test_a_card_says_how_fast_a_run_trains_and_what_to_do_where_it_waits(
    page: Run, store: RunStore, waiting: float, workers: int | None
) -> None:
    run = made_run(store, 0.4, "running", share=0.5)
    for step in range(201, 204):
        row = {"step": step, "seconds": 100.0 + step, "phase": "train", "loss": 0.5, "waiting": waiting}
        run.append_metrics({**row, "images_per_s": 312.4, **({} if workers is None else {"workers": workers})})
    text = html_of(page(PAGE))
    assert f"312 images/s, waiting for data {100 * waiting:.0f} % of the time" in text
    assert ("2 workers cannot load images fast enough. Give the next run more" in text) is (
        workers is not None and waiting > 0.2
    )


def test_the_end_of_a_run_is_forecast_where_finished_ones_reach(store: RunStore) -> None:
    going = made_run(store, 0.4, "running", share=0.5)
    finished = [made_run(store, 0.3 + 0.05 * i) for i in range(5)]
    every = store.list()
    mine = next(s for s in every if s.id == going.id)
    assert run_data.expected(store, mine, every) is None  # all their KLs are alike
    for number, run in enumerate(finished):
        run.metrics.write_text(
            run.metrics.read_text().replace('"kl_teacher": 2.0', f'"kl_teacher": {1.5 + 0.3 * number}')
        )
    run_data.rows.clear()
    band = run_data.expected(store, mine, every)
    found = outcomes(store, "demo", "demo", 4)
    assert band == forecast(found, 2.0, 4)
    assert band is not None
    assert band.runs == 5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"state": "queued", "position": 2}, "queued 2nd"),
        ({"state": "queued", "position": 11}, "queued 11th"),
        ({"state": "queued", "position": 23}, "queued 23rd"),
        ({"state": "running", "stage": "loading the teacher"}, "running: loading the teacher"),
        ({"state": "running", "stage": "training", "step": 43, "total_steps": 100, "seconds_left": 720},
         "running 43 %, 12 min left"),
        ({"state": "done", "top1": 90.14}, "done 90.1 %"),
        ({"state": "interrupted", "step": 5, "total_steps": 10}, "interrupted at 50 %"),
        ({"state": "failed"}, "failed"),
    ],
)  # fmt: skip
def test_state_words(values: dict[str, Any], words: str) -> None:
    assert run_data.state_words(RunState(**values)) == words


def test_rows_are_read_once_and_then_only_what_is_new(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_run(store, 0.5)
    cache = run_data._Rows()
    whole = cache(store, run.id)
    offsets = []
    read = RunStore.read_metrics

    def watched(self: RunStore, run_id: str, offset: int = 0) -> Any:
        offsets.append(offset)
        return read(self, run_id, offset)

    monkeypatch.setattr(RunStore, "read_metrics", watched)
    run.append_metrics({"step": 401, "phase": "train", "loss": 1.0})
    again = cache(store, run.id)
    assert again[: len(whole)] == whole
    assert again[-1]["step"] == 401
    assert offsets == [os.path.getsize(run.metrics) - len(json.dumps({"step": 401, "phase": "train", "loss": 1.0})) - 1]


def test_commands_name_the_preset_and_what_differs(store: RunStore) -> None:
    run = made_run(store, 0.5, **(PRESETS["demo"].model_dump() | {"lr": 5e-4, "seed": 3}))
    text = commands(run)
    assert "--preset demo --lr 0.0005 --seed 3" in text
    assert f"resume {run.id} --out" in text
    fresh = made_run(store, 0.5, from_scratch=True)
    assert "--preset letter" in commands(fresh)
    assert "--from-scratch" in commands(fresh)


def test_a_stuck_run_is_asked_at_once_holds_up_nobody_and_a_failed_stop_is_shown(
    page: Run, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers, release = jobs.Workers(), threading.Event()
    monkeypatch.setattr(jobs, "workers", lambda: workers)
    monkeypatch.setattr(jobs.imports, "import_heavy", lambda step: None)

    def finish(*_: object) -> None:
        release.wait(60)
        raise RunError("Run x has not stopped yet.")

    monkeypatch.setattr(RunStore, "finish", finish)
    run = made_run(store, 0.5, "running", share=0.5)
    test = page(PAGE)
    test.button(key=f"pause-{run.id}").click().run()
    assert run.request == "pause"
    assert "pausing" in html_of(test)
    assert not test.button(key=f"cancel-{run.id}").disabled
    measured = jobs.start("measure", lambda report: 1, "Measuring")
    wait_until(lambda: measured.state == "done", 10)
    release.set()
    wait_until(lambda: not run_actions.stopping(run.id), 10)
    check(test.run())
    assert "Run x has not stopped yet." in [warning.value for warning in test.warning]


def test_priority(page: Run, store: RunStore) -> None:
    running, queued = made_run(store, 0.5, "running", share=0.5), made_run(store, 0.25, "queued", share=0)
    test = page(PAGE)
    test.selectbox(key="one-run").set_value(queued.id).run()
    test.selectbox(key=f"priority-{queued.id}").set_value(2).run()
    assert not test.exception
    assert {s.id: s.priority for s in store.list()} == {running.id: 0, queued.id: 2}


def test_a_paused_run_can_be_resumed_and_a_note_is_shown(page: Run, store: RunStore) -> None:
    note = "Out of memory: the batch of 8 is trained 4 images at a time, gradients added up."
    run = made_run(store, 0.5, "paused", share=0.5)
    run.write_state(store.state(run.id).model_copy(update={"note": note}))
    test = page(PAGE)
    assert "paused at 50 %" in html_of(test)
    assert [b.label for b in test.button if b.key == f"resume-{run.id}"] == ["Resume"]
    assert note in [element.value for element in test.info]


def test_devices_are_listed_with_memory_in_use(page: Run, store: RunStore) -> None:
    run = made_run(store, 0.5, "running", share=0.5)
    made_run(store, 0.5)
    test = page(PAGE)
    (line,) = [c.value for c in test.caption if "memory in use" in c.value]
    assert line.startswith("CPU")
    assert line.endswith(run.spec.name)
