"""The real app on a free port of the loopback, with folders of its own."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import ROOT

SECONDS = 180.0


@contextmanager
def server(home: Path, **environment: str) -> Iterator[tuple[str, int]]:
    """Address and pid of a running app that measures no maps by itself; `home` holds its folders and `server.log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"UPVIT_HOME": str(home / "home"), "UPVIT_RUNS": str(home / "runs"), "UPVIT_MAPS": "off"}
    with (home / "server.log").open("wb") as log:
        command = [
            sys.executable,
            "-m",
            "streamlit",
            "run",
            "app.py",
            f"--server.port={port}",
            "--server.headless=true",
        ]
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **own, **environment}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + SECONDS
        while not healthy(port):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError((home / "server.log").read_text())
            time.sleep(0.1)
        yield f"http://localhost:{port}", process.pid
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def healthy(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=1)
    except OSError:
        return False
    return True
