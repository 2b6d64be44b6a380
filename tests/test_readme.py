"""The README's promises: its two commands are what CI runs, its commands work, its pictures and links exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.support import ROOT
from upvit_core.cli import app

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
SMALLER = {"--images": "16", "--epochs": "1", "--test-images": "100", "--depth": "5"}


def commands(heading: str) -> list[list[str]]:
    """Arguments after `python -m upvit_core` of the first bash block under a heading, made small."""
    section = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert block is not None
    lines = block.group(1).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:3] == ["python", "-m", "upvit_core"]:
            found.append([SMALLER.get(before, word) for before, word in zip(["", *words[3:]], words[3:], strict=False)])
    return found


def test_ci_runs_the_second_command() -> None:
    second = next(block for block in BLOCKS if "-m tests" in block).strip()
    assert second in (ROOT / ".ci" / "run").read_text()


def test_pictures_and_links_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [t for t in targets if not t.startswith("http") and not (ROOT / t).exists()]
    assert not missing


def test_commands_without_a_browser_work_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    todo = commands("Without a browser")
    assert {line[0] for line in todo} >= {"score", "plan", "prune", "evaluate", "profile", "distill", "export"}
    for arguments in todo:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (arguments, result.output, result.exception)


def test_every_verb_is_in_the_readme() -> None:
    names = set(typer.main.get_command(app).commands)
    assert names
    assert not [name for name in names if f"`{name}" not in README and f"upvit_core {name}" not in README]


def test_every_test_and_benchmark_that_is_named_exists() -> None:
    text = README
    for path in set(re.findall(r"\btests/[a-z0-9_/]+(?:\.(?:py|txt))?", text)):
        assert (ROOT / path).exists(), path
    for module in set(re.findall(r"\btests\.benchmarks\.([a-z_]+)", text)):
        place = ROOT / "tests" / "benchmarks" / module
        assert place.is_dir() or place.with_suffix(".py").is_file(), module
