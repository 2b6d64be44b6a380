"""A Slurm of our own on loopback: munged, slurmctld and two slurmd in a temporary folder, on ports of their own."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "TERM") if shutil.which("setpriv") else ()
CONFIG = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
PlugStackConfig={folder}/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,requeue_delay=0,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=3
MessageTimeout=20
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
{nodes}
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE State=UP OverSubscribe=NO
PartitionName=idle Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=patient PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent PriorityTier=100 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeAddr=127.0.0.1 NodeHostname={host} Port={port} CPUs=2 CoresPerSocket=2 State=UNKNOWN"


def missing() -> str:
    """The reason why no Slurm can be started here; empty where one can."""
    absent = [name for name in NEEDED if shutil.which(name, path=path_with_sbin()) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "a Slurm of our own is started as root"


def path_with_sbin() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def slurm(folder: Path, nodes: int = 2) -> Iterator[dict[str, str]]:
    """Start it, wait until its nodes are idle, and stop it in the end; yields the environment that finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    (folder / "state").mkdir()
    host = socket.gethostname().split(".")[0]
    controller, *ports = free_ports(1 + nodes)
    names = [f"n{number}" for number in range(nodes)]
    lines = [NODE.format(name=name, host=host, port=port) for name, port in zip(names, ports, strict=True)]
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, controller=controller, folder=folder, nodes="\n".join(lines)))
    (folder / "plugstack.conf").write_text("")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    environment = {**os.environ, "PATH": path_with_sbin(), "SLURM_CONF": str(config)}
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        with (folder / "daemons.log").open("ab") as log:
            daemons.append(
                subprocess.Popen(
                    [*DIE_WITH_PARENT, *command],
                    env=environment,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )

    try:
        munge = {"key-file": key} | {f"{file}-file": folder / f"munge.{file}" for file in ("pid", "log", "seed")}
        munge["socket"] = folder / "munge.socket"
        start("munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in munge.items()))
        wait_until(lambda: (folder / "munge.socket").exists(), folder)
        start("slurmctld", "-D", "-f", str(config), "-c")
        for name in names:
            start("slurmd", "-D", "-N", name, "-f", str(config))
        wait_until(lambda: sinfo(environment) == ["idle"] * nodes, folder)
        yield environment
    finally:
        with suppress(OSError, subprocess.SubprocessError, TimeoutError):
            subprocess.run(["scancel", "--signal=KILL", "--user=root"], env=environment, timeout=20, check=False)
            subprocess.run(["scancel", "--user=root"], env=environment, timeout=20, check=False)
            wait_until(lambda: not output(environment, "squeue", "--noheader"), folder, 20)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(daemons):
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()


def output(environment: dict[str, str], *command: str) -> list[str]:
    """Words that a command of Slurm prints."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.split()


def sinfo(environment: dict[str, str]) -> list[str]:
    """State of each node."""
    return output(environment, "sinfo", "--noheader", "--Node", "--partition=idle", "--format=%t")


def wait_until(condition: object, folder: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    assert callable(condition)
    while not condition():
        if time.monotonic() > deadline:
            logs = [f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in folder.glob("*.log")]
            raise TimeoutError("\n".join(logs))
        time.sleep(0.1)
