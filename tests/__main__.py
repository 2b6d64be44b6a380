"""Run every check: style, types, import order, tests. `python -m tests`; more arguments go to pytest.

Browser tests need Chromium, which is installed with apt-get where it is missing and that is possible. Where it is
not, the tests that did not run are named; under CI that is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def run(name: str, *command: str) -> int:
    print(f"== {name}", flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def chromium() -> str | None:
    """Path of a Chromium, after trying to install Debian's where there is none."""
    found = next((path for path in map(shutil.which, CHROMIUM) if path), None)
    if found or not shutil.which("apt-get"):
        return found
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if sudo and not shutil.which("sudo"):
        return None
    print("== installing chromium", flush=True)
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
        subprocess.run([*sudo, *command], check=False, stdout=subprocess.DEVNULL)
    return shutil.which("chromium")


def main() -> int:
    here = Path(sys.executable).parent
    failures = [
        name
        for name, command in {
            "style": (str(here / "ruff"), "check", "."),
            "format": (str(here / "ruff"), "format", "--check", "."),
            "types": (str(here / "mypy"), "upvit_core", "pages", "app.py"),
            "imports": (str(here / "lint-imports"),),
        }.items()
        if run(name, *command)
    ]
    browser = chromium()
    pytest = (sys.executable, "-m", "pytest", *sys.argv[1:])
    first = ("-m", "not browser and not slow and not gpu", "-n", str(os.cpu_count() or 1), "--dist", "loadfile")
    if run("tests", *pytest, *first):
        failures.append("tests")
    if browser:
        if run("browser tests", *pytest, "-m", "browser and not slow"):
            failures.append("browser tests")
    else:
        print("NOT RUN: the browser tests (tests/browser), since there is no Chromium and it could not be installed.")
        if os.environ.get("CI"):
            failures.append("browser tests")
    print("All checks passed." if not failures else f"Failed: {', '.join(failures)}.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
