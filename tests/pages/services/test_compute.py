"""The device of page jobs: which one, whose lease, and every job of a page on a GPU in rehearsal."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pages.method import rotation_lesson
from pages.services import compute, evaluation, jobs, maps, open_model, removal, scoring
from pages.services.open_model import OpenModel
from pages.tradeoff.prune import start_pruning
from tests.support.rehearsal import OnDevice, rehearsal
from tests.support.small_run import device_taken, write_images, write_teacher
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.basis import Basis
from upvit_core.records.criteria import CriterionName
from upvit_core.runs import RunStore
from upvit_core.runs.devices import is_held


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, the second with more memory free."""
    names = ("cuda:0", "cuda:1")
    monkeypatch.setattr(compute, "gpu_names", lambda: names)
    monkeypatch.setattr(compute, "freest_first", lambda given: sorted(given, reverse=True))
    monkeypatch.setattr("upvit_core.models.device.use", lambda name: name)


def device_in_a_job(chosen: str, during: Callable[[str], object] = lambda name: None) -> tuple[str, str]:
    """The device that a job gets, and what it says last."""

    def work(report: jobs.Report) -> str:
        name = compute.device(chosen)
        assert compute.device("cpu") == name, "a job computes on one device"
        during(name)
        return name

    job = jobs.start(f"device {time.monotonic()}", work, "Which device")
    assert job.result is not None, job.error
    return job.result, job.detail


def test_a_job_takes_the_freest_gpu_that_no_run_has(gpus: None, jobs_at_once: None, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    assert device_in_a_job("auto")[0] == "cuda:1"
    assert device_in_a_job("cuda:0")[0] == "cuda:0"
    assert device_in_a_job("cpu")[0] == "cpu"
    assert compute.device() == "cpu"  # outside of jobs
    with device_taken(store, "cuda:1"):
        assert device_in_a_job("auto")[0] == "cuda:0"
        with device_taken(store, "cuda:0"):
            assert device_in_a_job("auto") == ("cpu", "runs have every GPU: on the CPU")


def test_jobs_share_a_lease_and_runs_wait_for_it(gpus: None, jobs_at_once: None) -> None:
    def inside(name: str) -> None:
        assert is_held(name)
        assert device_in_a_job(name)[0] == name
        assert is_held(name)
        with compute.paused():
            assert not is_held(name)
        assert is_held(name)

    device_in_a_job("cuda:1", inside)
    assert not is_held("cuda:1")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenModel:
    write_teacher(tmp_path / "model")
    write_images(tmp_path / "images", train=16, val=8)
    monkeypatch.setattr(compute, "gpu_names", lambda: ("cuda:0",))
    opened = open_model.inspect(str(tmp_path / "model"))
    assert opened is not None
    return replace(opened, dataset=str(tmp_path / "images"))


def test_every_job_of_a_page_computes_on_the_gpu(
    model: OpenModel, jobs_at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Baseline, scores of both bases, preview, cut, removals, the lesson, speed and a map; the CPU gives the same."""
    monkeypatch.setattr(maps, "STEPS", (2,))
    monkeypatch.setattr(maps, "REST_SECONDS", 0.0)

    def results(model: OpenModel) -> dict[str, object]:
        done: dict[str, jobs.AnyJob] = {"baseline": evaluation.measure_baseline(model)}
        for criterion in (CriterionName.FISHER, CriterionName.REFINE):
            done[criterion] = scoring.start_scoring(model, scoring.Request(criterion, 40), WhatIf(50, 50, None, 50))
        done["directions"] = scoring.directions(model)
        scores = done["directions"].result
        assert scores is not None, done["directions"].error
        what_if = WhatIf(50, 50, None, 50, basis=Basis.DIRECTIONS, repair=True)
        plan = what_if.plan(scores)
        done["preview"] = evaluation.preview(model, plan, repair=True)
        done["cut"] = start_pruning(model, plan, what_if)
        removal.prepare(model)
        done["channel"] = removal.removal_job(model, "attention", 0, 1)
        done["direction"] = removal.direction_removal_job(model, "residual", 0, 2)
        done["rotation"] = rotation_lesson.rotation_job(model)
        if model.device != "cpu":
            done["speed"] = evaluation.throughput(plan)
        map_job = maps.job_of(model, scores, what_if, start=True)
        assert map_job is not None
        done["map"] = map_job
        while map_job.active:
            time.sleep(0.01)
        assert not [f"{name}: {job.error}" for name, job in done.items() if job.state != "done"]
        return {name: job.result for name, job in done.items()}

    expected = results(replace(model, device="cpu"))
    seen: list[type] = []
    weights = OpenModel.weights

    def watched(self: OpenModel) -> object:
        loaded = weights(self)
        seen.append(type(next(loaded.model.parameters())))
        return loaded

    monkeypatch.setattr(OpenModel, "weights", watched)
    for key in list(jobs.workers().all()):
        jobs.discard(key.key)
    with rehearsal():
        got = results(model)
    assert set(seen) == {OnDevice}
    assert got["preview"].kl == pytest.approx(expected["preview"].kl, rel=0.05)  # type: ignore[attr-defined]
    assert got["baseline"].value == expected["baseline"].value  # type: ignore[attr-defined]
    np.testing.assert_allclose(got["channel"].kl, expected["channel"].kl, rtol=1e-3, atol=1e-6)  # type: ignore[attr-defined]
