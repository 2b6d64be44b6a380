"""A server that stops while jobs compute ends quietly: Python's way of stopping threads aborts inside torch's C++."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT

SERVER = """
import threading, time, torch
from pages.services import imports, jobs

jobs.FIRST_PAINT_SECONDS = 0
imports.import_heavy = lambda say: None
torch.set_num_threads(1)
computing = threading.Event()

def work(report):
    a = torch.randn(300, 300)
    while True:
        for _ in range(20):
            a = (a @ a).tanh()
        computing.set()
        if {listens}:
            report(0.5)

workers = jobs.Workers()
jobs_started = [workers.start(str(long), work, "work", long=long, again=False) for long in (True, False)]
computing.wait(60)
time.sleep(0.2)
print("stopping", flush=True)
"""


@pytest.mark.parametrize("listens", [True, False])
def test_no_abort_while_torch_computes(listens: bool) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SERVER.format(listens=listens)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ended.stdout == "stopping\n"
    assert "terminate" not in ended.stderr
    assert ended.returncode == 0
