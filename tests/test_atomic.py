import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from upvit_core.atomic import append_line, locked, read_lines, write_atomically


def test_lines_come_back_whole_and_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows, offset = read_lines(path)
    assert (rows, offset) == ([], 0)
    for step in range(5):
        append_line(path, {"step": step})
    rows, offset = read_lines(path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert read_lines(path, offset) == ([], offset)
    append_line(path, {"step": 5})
    assert read_lines(path, offset)[0] == [{"step": 5}]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_torn_last_line_waits_and_is_then_passed_over(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 0})
    torn = json.dumps({"step": 1}).encode()[:cut]
    with path.open("ab") as file:
        file.write(torn)
    rows, offset = read_lines(path)
    assert (rows, offset) == ([{"step": 0}], len(b'{"step": 0}\n'))
    append_line(path, {"step": 2})
    later = read_lines(path, offset)[0]
    assert later[-1] == {"step": 2}
    assert read_lines(path)[0] == [{"step": 0}, *later]
    assert len(later) == (2 if cut == len(json.dumps({"step": 1})) else 1)


def test_lines_that_are_no_records_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n[1]\n\xff\xfe\nnull\n' + b"[" * 100_000 + b'\n{"a": 2}\n')
    assert read_lines(path)[0] == [{"a": 1}, {"a": 2}]


def test_a_file_that_became_shorter_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"a": 1})
    assert read_lines(path, 10_000)[0] == [{"a": 1}]


def test_atomic_write_leaves_the_old_content_where_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state.json"]


def _hold(path: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with locked(path) as held:
        assert held
        ready.set()
        signal.pause()


def test_the_kernel_frees_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "lock", ready))
    process.start()
    assert ready.wait(20)
    with locked(tmp_path / "lock") as held:
        assert not held
    process.kill()
    process.join()
    with locked(tmp_path / "lock") as held:
        assert held
        with locked(tmp_path / "lock", timeout=0.1) as again:
            assert not again
