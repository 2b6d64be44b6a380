"""The limits of the server's process and of its folder of uploads."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import streamlit as st

from pages.services import folders, jobs
from tests.support import ROOT
from tests.support.made_runs import made_run
from tests.support.server import server as running
from tests.support.session import Session
from upvit_core.errors import LimitError
from upvit_core.runs.store import RunStore

PREPARED = """
import resource
from streamlit import config
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))
from pages.services import server
server.prepare()
print(*resource.getrlimit(resource.RLIMIT_NOFILE), config.get_option("server.maxUploadSize"))
"""


@pytest.mark.parametrize(("uploads", "megabytes"), [("off", 0), ("on", 2048)])
def test_a_server_may_open_many_files_and_takes_no_upload_where_they_are_off(uploads: str, megabytes: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREPARED],
        cwd=ROOT, env={**os.environ, "UPVIT_UPLOADS": uploads}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["4096", "4096", str(megabytes)], done.stderr
    assert "server.prepare()" in (ROOT / "app.py").read_text()
    configured = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())
    assert configured["server"]["disconnectedSessionTTL"] <= 120


def test_uploads_grow_old_and_share_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "UPLOAD_BYTES", 250)

    def keep(name: str, size: int = 100) -> Path:
        return folders.keep_upload(name, memoryview(bytes(size)))

    old, first, second = keep("old.pth", 10), keep("first.pth"), keep("second.pth")
    for path, age in ((old, 8 * 86400), (first, 50), (second, 90)):
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    keep("second.pth")
    third = keep("third.pth")
    assert set(folders.uploads().iterdir()) == {second, third}
    with pytest.raises(LimitError, match="at most"):
        keep("giant.pth", 251)


def test_jobs_outlive_the_clearing_of_streamlit_s_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of the fixture that replaces them
    before = jobs.workers()
    st.cache_resource.clear()
    assert jobs.workers() is before


def test_a_timer_of_the_page_before_changes_nothing_on_the_page_that_is_open(tmp_path: Path) -> None:
    made_run(RunStore(tmp_path / "runs"), 0.4, "running", share=0.5)
    with running(tmp_path) as (address, _):
        visitor = Session(address)
        for late in (False, True):  # the timer goes off while the other page is drawn, or after it
            visitor.page, visitor.hash = "glossary", ""
            visitor.rerun()
            before, (timer, *_) = visitor.hash, visitor.fragments
            visitor.page, visitor.hash = "importance", ""
            visitor.pages.clear()
            visitor.send()
            if late:
                visitor.take()
            visitor.hash = before
            visitor.send(timer)
            if not late:
                visitor.take()
            with pytest.raises(TimeoutError):
                visitor.take(2)
            assert visitor.pages
            assert before not in visitor.pages
        visitor.close()
