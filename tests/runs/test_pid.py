import os
import signal
import subprocess
import sys
import time

from upvit_core.runs.pid import ProcessIdentity, boot_id, start_of


def test_this_process_is_alive_and_a_reused_pid_is_not_it() -> None:
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    assert me.is_alive
    assert not ProcessIdentity(me.pid, me.started + 1, me.boot).is_alive
    assert not ProcessIdentity(me.pid, me.started, "another boot").is_alive
    assert boot_id() == me.boot


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    identity = ProcessIdentity.of(child.pid)
    assert identity is not None
    assert identity.is_alive
    os.kill(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while start_of(child.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not identity.is_alive
    child.wait()
    assert ProcessIdentity.of(child.pid) is None


def test_a_signal_reaches_the_whole_group_of_a_leader_only() -> None:
    code = "import subprocess, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    child.stdout.readline()
    identity = ProcessIdentity.of(child.pid)
    assert identity is not None
    ProcessIdentity(child.pid, identity.started + 1, identity.boot).signal(signal.SIGKILL)
    assert identity.is_alive
    identity.signal(signal.SIGTERM)
    child.wait(10)
    assert child.stdout.read() == b""  # the pipe closes once the grandchild is gone too
    child.stdout.close()
