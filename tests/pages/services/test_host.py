"""Rights of a visitor of a shared studio: everything is tried, and the host's code opens it."""

import gc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.services import folders, host, launch, limits, open_model
from pages.services.session import Session
from pages.workshop.room import Room
from tests.support.made_runs import made_run
from tests.support.reading import check, session_of
from tests.support.server import server
from tests.support.session import Session as Visitor
from upvit_core.errors import LimitError
from upvit_core.limits import Limits
from upvit_core.runs import RunStore

Page = Callable[..., AppTest]
SHARED = Limits(host=True)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPVIT_HOST", "on")
    monkeypatch.setattr(host, "WRONG_SECONDS", 0.0)


def browser(monkeypatch: pytest.MonkeyPatch, address: str | None, **headers: str) -> None:
    context = SimpleNamespace(ip_address=address, headers=headers, cookies={}, theme=SimpleNamespace(type="light"))
    monkeypatch.setattr(host.st, "context", context)


@pytest.mark.parametrize(
    ("address", "headers", "limits", "is_host"),
    [
        ("127.0.0.1", {}, Limits(), True), (None, {}, Limits(), True), ("192.0.2.7", {}, Limits(), False),
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.7"}, Limits(), False), ("127.0.0.1", {}, SHARED, False),
    ],
)  # fmt: skip
def test_who_is_the_host(
    monkeypatch: pytest.MonkeyPatch, address: str, headers: dict[str, str], limits: Limits, is_host: bool
) -> None:
    browser(monkeypatch, address, **headers)
    monkeypatch.setattr(host, "get_script_run_ctx", lambda **_: object())
    monkeypatch.setattr(host, "session", lambda mine=Session(): mine)
    assert host.is_host(limits) is is_host
    assert not host.unlock("0000-0000-0000")
    assert host.is_host(limits) is is_host
    assert host.unlock(f" {host.CODE} ")
    assert host.is_host(limits)


@pytest.mark.parametrize(
    ("name", "known"),
    [("localhost:8501", True), ("127.0.0.1:8501", True), ("[::1]:8501", True), ("192.0.2.7", True), ("", True),
     ("studio.school.org", True), ("evil.example:8501", False), ("localhost.evil.example", False)],
)  # fmt: skip
def test_a_foreign_name_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, known: bool) -> None:
    browser(monkeypatch, "127.0.0.1", Host=name)
    allowed = Limits(host_names=("studio.school.org",))
    if known:
        host.check_name(allowed)
    else:
        with pytest.raises(LimitError, match="does not answer to the name"):
            host.check_name(allowed)


@pytest.mark.parametrize("place", ["/etc/passwd", "vit_base_patch16_224", "hf-hub:a/b", "local-dir:/etc", " /etc"])
def test_a_visitor_opens_the_demo_and_what_the_host_offers(
    page: Page, shared: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    check(page("pages/glossary/page.py"))
    check(page("pages/glossary/page.py", open="no-weights:deit_tiny_patch16_224"))
    upload = folders.uploads() / "of-another.pth"
    upload.touch()
    for refused in (place, str(upload)):
        test = page("pages/glossary/page.py", open=refused)
        assert "may not be read here" in test.warning[0].value
    monkeypatch.setenv("UPVIT_ROOTS", str(tmp_path))
    limits.confine(str(tmp_path / "offered"))


def test_the_code_opens_what_is_the_host_s(page: Page, shared: None, tmp_path: Path) -> None:
    room = Room(folders.workshop())
    room.rename("t" * 32, "Ada")
    test = page("pages/workshop/page.py")
    check(test)
    assert not [b for b in test.button if b.key in ("room-clear", "room-queue")]
    code = next(t for t in test.text_input if t.label == "Code")
    code.set_value("guess")
    next(b for b in test.button if b.label == "Unlock").click().run()
    assert [e.value for e in test.error] == ["That is not this server's code."]
    assert not [b for b in test.button if b.key == "room-clear"]
    next(t for t in test.text_input if t.label == "Code").set_value(host.CODE)
    next(b for b in test.button if b.label == "Unlock").click().run()
    check(test)
    test.button(key="room-clear").click().run()
    assert room.leaderboard() == []


def test_only_the_host_and_its_owner_steer_a_run(page: Page, shared: None, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    theirs, queued = made_run(store, 0.5, "running", share=0.5, owner="them"), made_run(store, 0.4, "queued", owner="x")
    done = made_run(store, 0.3, owner="them")
    test = page("pages/runs/page.py")
    check(test)

    def offered(run: Any) -> set[str]:
        widgets = (*test.button, *test.text_input, *test.selectbox)
        return {str(w.key).removesuffix(f"-{run.id}") for w in widgets if str(w.key).endswith(run.id)}

    assert offered(theirs) <= {"scratch"}
    assert not offered(queued) | offered(done) - {"scratch"}
    session_of(test).asking = "delete", done.id  # as if somebody had forged the press
    test.run()
    assert not [b for b in test.button if b.key == "delete-yes"]
    session_of(test).owner = "them"
    session_of(test).asking = None
    test.run()
    assert {"pause", "cancel", "rename"} <= offered(theirs)
    assert not offered(queued) - {"scratch"}
    session_of(test).unlocked = True
    test.run()
    assert {"pause", "cancel"} <= offered(queued)


def test_runs_are_counted_by_address_and_in_all_and_said_before(
    page: Page, shared: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPVIT_RUNS_PER_SESSION", "1")
    monkeypatch.setenv("UPVIT_RUNS_IN_ALL", "2")
    monkeypatch.setattr(launch, "executor_for", lambda store, spec: SimpleNamespace(submit=lambda run: None))
    monkeypatch.setattr(host, "_address", lambda: "192.0.2.7")
    store, refused = RunStore(tmp_path / "runs"), []
    for _ in range(2):  # a reload is another session, not another visitor
        test = page("pages/method/page.py", step="7 · Learning again")
        refused += [caption.value for caption in test.caption if "Runs that go on" in caption.value]
        test.button(key="lesson-start").click().run()
    assert "allows 1 run at a time for each visitor" in test.error[0].value
    said = "Runs that go on or wait: {0} of the 1 that you may have at a time, {0} of 2 in all."
    assert refused == [said.format(0), said.format(1)]
    made_run(store, 0.5, "queued", owner="them")
    with pytest.raises(LimitError, match="allows 2 runs at a time in all; 2 are not finished"):
        limits.check_room(store, "another")


def test_an_upload_has_a_plain_name_and_leaves_with_its_session(shared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = [Session()]
    monkeypatch.setattr(folders, "session", lambda: sessions[0])
    kept = folders.keep_upload("x#heads=3.pth", memoryview(b"1"))
    used = folders.keep_upload("teacher.pth", memoryview(b"2"))
    assert kept.name == "x-heads-3.pth"
    assert open_model.path_of(str(kept)) == str(kept)
    store = RunStore(folders.runs())
    made_run(store, 0.5)
    (run,) = store.list()
    spec = store.get(run.id).spec.model_copy(update={"teacher": f"{used}#heads=3"})
    (store.folder(run.id) / "spec.json").write_text(spec.model_dump_json())
    sessions.clear()
    gc.collect()
    assert (kept.exists(), used.exists()) == (False, True)


@pytest.mark.slow
def test_a_visitor_of_a_real_server(tmp_path: Path) -> None:
    """By the wire: a foreign Host, paths in links, and the host's panel, from a browser on the same machine."""
    with server(tmp_path, UPVIT_HOST="on", OMP_NUM_THREADS="1") as (address, _):
        for query in ("open=/etc/passwd", "open=local-dir:/etc/passwd", "open=%20/etc/passwd", "images=/etc"):
            visitor = Visitor(address, "workshop", query)
            visitor.rerun()
            said = " ".join((*visitor.errors, *visitor.texts))
            assert "may not be read here" in said
            assert "root:" not in said
            assert not {"Clear the room", "Empty the queue"} & set(visitor.buttons)
            visitor.close()
        assert "Host code: " in (tmp_path / "server.log").read_text()
        stranger = Visitor(address, "workshop", host="evil.example")
        stranger.rerun()
        assert any("does not answer to the name evil.example" in error for error in stranger.errors)
        assert not stranger.buttons
        stranger.close()
