"""Reasons why runs stopped: every run that is not active has one sentence, runs of earlier versions too."""

import errno
import io
import json
import os
from pathlib import Path

import pytest
import torch

from tests.support.made_runs import this_process
from tests.support.small_run import any_spec
from upvit_core.runs import RunState, RunStore
from upvit_core.runs.reason import GO_ON, error_message, reason_of
from upvit_core.runs.spec import ACTIVE

SPEC = any_spec()


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (RunState(state="queued", error="old"), ""),
        (RunState(state="running"), ""),
        (RunState(state="done", step=1200, total_steps=1200), "All 1,200 steps are done."),
        (RunState(state="failed", error="No room."), "No room."),
        (RunState(state="interrupted", error="It was killed."), "It was killed."),
        (RunState(state="paused", step=3, total_steps=10), f"Paused at step 3 of 10; {GO_ON}"),
        (
            RunState(state="cancelled", step=3, total_steps=10, stopped_by="somebody"),
            f"Cancelled by somebody at step 3 of 10; {GO_ON}",
        ),
        (RunState(state="cancelled"), f"Cancelled before its first step; {GO_ON}"),
    ],
)
def test_sentences(state: RunState, reason: str) -> None:
    assert reason_of(state) == reason
    assert bool(reason) != (state.state in ACTIVE)


@pytest.mark.parametrize(("verb", "word"), [("pause", "Paused"), ("cancel", "Cancelled")])
def test_who_stopped_a_run_is_kept_until_it_goes_on(store: RunStore, verb: str, word: str) -> None:
    run = store.create(SPEC)
    getattr(store, verb)(run.id, by="the person at\x00 the desk\n")
    (summary,) = store.list()
    assert summary.reason == f"{word} by the person at the desk before its first step; {GO_ON}"
    assert json.loads((run.folder / "state.json").read_text())["stopped_by"] == "the person at the desk"
    store.resume(run.id)
    assert (store.state(run.id).stopped_by, store.list()[0].reason) == ("", "")


def test_a_killed_run_has_its_reason_on_reading(store: RunStore) -> None:
    run = store.create(SPEC)
    run.write_state(RunState(state="running", **(this_process() | {"started": 1})))
    assert "was killed" in store.list()[0].reason
    os.utime(run.folder / "state.json", (1e9, 1e9))
    run.write_state(RunState(state="queued"))
    os.utime(run.folder / "state.json", (1e9, 1e9))
    assert "never started" in store.list()[0].reason


class _FullDisk(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, content: memoryview) -> int:  # type: ignore[override]
        if len(content) < 10_000:
            return len(content)
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_whatever_torch_says_of_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="unexpected pos") as caught:
        torch.save({"a": torch.zeros(100_000)}, _FullDisk())
    assert error_message(caught.value, tmp_path).startswith("The disk is full")


def test_a_state_of_the_version_before_has_a_reason(store: RunStore) -> None:
    run = store.create(SPEC)
    record = {"state": "cancelled", "pid": 4, "step": 7, "total_steps": 9, "error": "", "note": ""}
    (run.folder / "state.json").write_text(json.dumps(record))
    assert store.list()[0].reason == f"Cancelled at step 7 of 9; {GO_ON}"


def test_a_folder_that_cannot_be_read_says_so(store: RunStore) -> None:
    run = store.create(SPEC)
    (run.folder / "spec.json").write_text("{")
    (summary,) = store.list()
    assert summary.reason == summary.problem != ""
