"""Thirty threads at once on what pages share: jobs, run folders and their rows, limits; nothing fails or is lost."""

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pages.services import folders, jobs, limits, run_data
from tests.support.made_runs import made_run
from upvit_core.runs import RunStore

THREADS, ROUNDS = 30, 25


def at_once(work: Callable[[int, random.Random], None]) -> None:
    """Run the work of each thread; the first error of any is raised here."""
    errors: list[BaseException] = []
    together = threading.Barrier(THREADS)

    def one(number: int) -> None:
        together.wait()
        try:
            work(number, random.Random(number))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


@pytest.mark.parametrize("remembered", [jobs.MOST_REMEMBERED, 2 * THREADS * ROUNDS])
def test_jobs_are_done_once_while_they_are_remembered(monkeypatch: pytest.MonkeyPatch, remembered: int) -> None:
    monkeypatch.setattr(jobs.imports, "import_heavy", lambda step: None)
    monkeypatch.setattr(jobs, "MOST_REMEMBERED", remembered)
    workers, counting, done = jobs.Workers(), threading.Lock(), dict[str, int]()
    monkeypatch.setattr(jobs, "workers", lambda: workers)

    def work(number: int, chance: random.Random) -> None:
        for turn in range(ROUNDS):
            key = f"{chance.randrange(12)} of {turn}"  # several sessions ask for the same

            def once(report: jobs.Report, key: str = key) -> str:
                with counting:
                    done[key] = done.get(key, 0) + 1
                return key

            started = jobs.start(key, once, "Measuring")
            jobs.submit_done(f"known {number} {turn}", "Known", number)
            assert jobs.find(key) is not None or not started.active
            for job in workers.all():
                _ = job.state
            if turn % 7 == 0:
                jobs.discard(f"known {number} {turn}")
            jobs.wait_briefly(started, 20)
            assert started.result == key

    at_once(work)
    assert len(workers.all()) <= remembered
    if remembered >= len(done) + THREADS * ROUNDS:  # else a slow thread may ask for what has been forgotten
        assert set(done.values()) == {1}
    else:
        assert len(workers.all()) == remembered


def test_runs_are_made_listed_named_read_and_removed(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    kept = [made_run(store, 0.5, steps=40, name=f"kept {n}") for n in range(3)]
    rows = run_data.rows()
    gone: list[str] = []

    def work(number: int, chance: random.Random) -> None:
        mine = made_run(store, 0.25, steps=8, name=f"of {number}", owner=str(number))
        for _ in range(5):
            own = RunStore(store.root)  # as another server would
            assert {run.id for run in kept} <= {s.id for s in own.list()}
            run = chance.choice(kept)
            run.append_metrics({"step": 99, "phase": "train", "loss": 1.0})
            assert len(rows(store, run.id)) >= len(rows.known(store, run.id).train)
            store.rename(run.id, f"kept by {number}")
            limits.check_room(store, str(number))
            limits.confine(str(folders.runs() / mine.id))
        if number % 2:
            store.remove(mine.id)
            gone.append(mine.id)

    at_once(work)
    left = {s.id: s for s in RunStore(store.root).list()}
    assert len(left) == len(kept) + THREADS - len(gone)
    assert not set(gone) & set(left)
    assert not any(s.problem for s in left.values())
    written = [sum(row.get("step") == 99 for row in store.read_metrics(run.id)[0]) for run in kept]
    assert sum(written) == 5 * THREADS
    for run in kept:
        assert rows(store, run.id) == store.read_metrics(run.id)[0]
