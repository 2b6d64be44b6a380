"""Input from a browser: links, paths, names and numbers, however odd, are refused in a sentence and lead nowhere."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.services import folders, host, launch, limits, open_model
from pages.widgets import run_actions
from tests.support import ROOT
from tests.support.made_runs import made_run
from tests.support.reading import check, session_of
from upvit_core.errors import LimitError
from upvit_core.runs import RunStore

MODEL = "pages/start/page.py"
Run = Callable[..., AppTest]


@pytest.fixture
def confined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "allowed"
    root.mkdir()
    (tmp_path / "secret").mkdir()
    monkeypatch.setenv("UPVIT_ROOTS", str(root))
    return root


@pytest.mark.parametrize(
    "link",
    ["/etc/passwd", "../../secret", "published:/etc", "/proc/self/environ#heads=3", "no-weights:/etc/passwd", "~/.ssh",
     "published:../secret", "x" * 5000, "a\0b"],
)  # fmt: skip
def test_links_lead_nowhere_else(page: Run, confined: Path, link: str) -> None:
    test = page(MODEL, open=link)
    assert not test.exception
    (error,) = [e.value for e in test.warning]
    assert "may not be read here" in error or "is no path" in error
    assert "root:" not in error


@pytest.mark.parametrize(
    "query",
    [{"residual": "9" * 400}, {"residual": "-1"}, {"residual": "nan"}, {"heads": "1e9"}, {"ffn": "<script>"},
     {"attention": ""}, {"basis": "x" * 10_000}, {"widths": "9" * 5000}, {"round-to": "0"}, {"allocation": "\0"}],
)  # fmt: skip
def test_odd_values_in_a_link_do_no_harm(page: Run, query: dict[str, str]) -> None:
    for path in (MODEL, "pages/tradeoff/page.py"):
        test = page(path, **query)
        assert not test.exception


def test_the_app_s_own_and_the_demo_stay_readable(confined: Path) -> None:
    for place in (
        folders.runs() / "one" / "model",
        limits.ASSETS / "demo",
        "demo",
        confined,
    ):
        limits.confine(str(place))
    with pytest.raises(LimitError):
        limits.confine(str(confined.parent / "secret"))


def test_images_are_confined_too(confined: Path) -> None:
    model = open_model.inspect("demo")
    assert model is not None
    with pytest.raises(LimitError, match="may not be read"):
        open_model.choose_dataset(model, str(confined.parent / "secret"))
    with pytest.raises(LimitError, match="may not be read"):
        replace(model, dataset=str(confined.parent / "secret")).images("val")


def test_a_studio_that_others_can_reach_reads_only_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host.st, "get_option", lambda name: "0.0.0.0")
    with pytest.raises(LimitError, match="none but the app's own"):
        limits.confine(str(tmp_path / "elsewhere"))
    monkeypatch.setattr(host.st, "get_option", lambda name: "localhost")
    limits.confine(str(tmp_path / "elsewhere"))


def test_uploads_can_be_turned_off(page: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPVIT_UPLOADS", "off")
    test = page(MODEL)
    assert not test.exception
    assert not test.get("file_uploader")


def test_runs_of_a_session_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(tmp_path / "runs")
    for state in ("running", "queued", "done"):
        made_run(store, 0.5, state, owner="me")
    made_run(store, 0.5, "running", owner="you")
    limits.check_room(store, "me", 100)
    monkeypatch.setenv("UPVIT_RUNS_PER_SESSION", "3")
    limits.check_room(store, "me")
    with pytest.raises(LimitError, match=r"allows 3 runs at a time for each visitor; 2 of yours are .* 2 more"):
        limits.check_room(store, "me", 2)
    assert run_actions.PRIORITIES[0] == "in turn"


def transfer_form(page: Run) -> AppTest:
    test = page("pages/runs/page.py")
    test.button(key="new-run").click().run()
    return test.segmented_control(key="new-run-kind").set_value("Go to other images").run()


@pytest.mark.parametrize(
    ("place", "images"),
    [("secret", "images"), ("allowed/../secret", "images"), ("allowed/link", "images"), ("allowed", "secret"),
     ("allowed", "x" * 5000), ("allowed", "allowed/link"), ("allowed", "a\0b")],
)  # fmt: skip
def test_transfer_takes_nothing_from_elsewhere(
    page: Run, confined: Path, monkeypatch: pytest.MonkeyPatch, place: str, images: str
) -> None:
    import streamlit as st

    (confined / "link").symlink_to(confined.parent / "secret")
    box = st.selectbox

    def typed(label: str, *values: object, **more: Any) -> object:  # AppTest cannot type a choice of its own
        chosen = box(label, *values, **more)
        return str(confined.parent / place) if more.get("key") == "transfer-student" else chosen

    monkeypatch.setattr(st, "selectbox", typed)
    test = transfer_form(page)
    outside = str(confined.parent / images) if images in ("secret", "allowed/link") else images
    test.text_input(key="transfer-images").set_value(outside).run()
    test.button(key="transfer-start").click().run()
    assert not test.exception
    (error,) = [e.value for e in test.error]
    assert "may not be read here" in error or "is no path" in error
    assert not RunStore(folders.runs()).list(), "nothing was started"


def test_transfer_keeps_to_the_runs_of_a_session(page: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPVIT_RUNS_PER_SESSION", "2")
    test = transfer_form(page)
    session_of(test).owner = "me"
    for _ in range(2):
        made_run(RunStore(folders.runs()), 0.5, "running", owner="me")
    test.text_input(key="transfer-images").set_value("torch/cifar10").run()
    test.button(key="transfer-start").click().run()
    assert "allows 2 runs at a time" in test.error[0].value


def test_every_way_to_start_a_run_asks_the_same_limit(
    page: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starters = {path.name for path in (ROOT / "pages").rglob("*.py") if "executor_for" in path.read_text()}
    assert starters == {"launch.py"}
    monkeypatch.setenv("UPVIT_RUNS_PER_SESSION", "1")
    monkeypatch.setattr(launch, "executor_for", lambda store, spec: SimpleNamespace(submit=lambda run: None))
    test = page("pages/method/page.py", step="7 · Learning again")
    session_of(test).owner = "me"
    test.button(key="lesson-start").click().run()
    check(test)
    store = RunStore(folders.runs())
    (first,) = store.list()
    assert first.spec is not None
    assert first.spec.owner == "me"
    assert test.button(key="lesson-start").disabled, "a second press would drop the first lesson from the page"
    session_of(test).lessons.clear()
    test.run()
    test.button(key="lesson-start").click().run()
    assert "allows 1 run at a time" in test.error[0].value
    paused = made_run(store, 0.5, "paused", owner="me")
    test = page("pages/runs/page.py")
    test.button(key=f"resume-{paused.id}").click().run()
    assert "allows 1 run at a time" in test.error[0].value
    assert store.state(paused.id).state == "paused"


def test_an_odd_exercise_in_a_link_is_the_first_or_the_last(page: Run) -> None:
    for told, number in (("9" * 5000, 7), ("-1", 0), ("x", 0), ("\u0669" * 30, 7), ("0", 0)):
        test = page("pages/workshop/page.py", exercise=told)
        check(test)
        assert test.session_state["exercise-chosen"] == number


def test_plans_cannot_be_brought_where_uploads_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for uploads, offered in (("on", True), ("off", False)):
        monkeypatch.setenv("UPVIT_UPLOADS", uploads)
        test = AppTest.from_file(str(limits.ASSETS.parent / "pages/tradeoff/page.py"), default_timeout=300)
        test.session_state["pictures"] = "Compare"
        test.run()
        assert not test.exception
        assert bool(test.get("file_uploader")) is offered
