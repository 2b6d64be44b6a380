"""Run every check: style, types, import order, tests. `python -m tests`; more arguments go to pytest.

Browser tests need Chromium, which is installed with apt-get where it is missing and that is possible. Where it is
not, the tests that did not run are named; under CI that is a failure.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Step:
    name: str
    failed: bool
    seconds: float


def run(name: str, *command: str) -> Step:
    print(f"== {name}", flush=True)
    began = time.monotonic()
    failed = subprocess.run(command, cwd=ROOT, check=False).returncode != 0
    return Step(name, failed, time.monotonic() - began)


def chromium() -> str | None:
    """Path of a Chromium, after trying to install Debian's where there is none."""
    installed = next((path for path in map(shutil.which, CHROMIUM) if path), None)
    if installed or not shutil.which("apt-get"):
        return installed
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if sudo and not shutil.which("sudo"):
        return None
    print("== installing chromium", flush=True)
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
        subprocess.run([*sudo, *command], check=False, stdout=subprocess.DEVNULL)
    return shutil.which("chromium")


def main() -> int:
    tools = Path(sys.executable).parent
    pytest = (sys.executable, "-m", "pytest", *sys.argv[1:])
    cores = os.cpu_count() or 1
    by_file = ("--dist", "loadfile", "-n")
    steps = [
        run("style", str(tools / "ruff"), "check", "."),
        run("format", str(tools / "ruff"), "format", "--check", "."),
        run("types", str(tools / "mypy"), "upvit_core", "pages", "app.py"),
        run("imports", str(tools / "lint-imports")),
        run("tests", *pytest, "-m", "not browser and not slow and not gpu", *by_file, str(cores)),
    ]
    if chromium():
        steps.append(run("browser tests", *pytest, "-m", "browser and not slow", *by_file, str(min(cores, 2))))
    else:
        print("NOT RUN: the browser tests (tests/browser), since there is no Chromium and it could not be installed.")
        steps.append(Step("browser tests", failed=bool(os.environ.get("CI")), seconds=0.0))
    print(", ".join(f"{step.name} {step.seconds:.0f} s" for step in steps))
    failures = [step.name for step in steps if step.failed]
    print(f"Failed: {', '.join(failures)}." if failures else "All checks passed.")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
