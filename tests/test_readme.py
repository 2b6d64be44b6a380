"""The promises of the READMEs: CI runs the second command; commands, examples, pictures and links work."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from tests.support import ROOT
from upvit_core.cli import app
from upvit_core.data.opening import DEMO_FILES
from upvit_core.paths import DEMO_FOLDER

PATHS = ("README.md", "upvit_core/README.md", "tests/benchmarks/README.md", "pages/workshop/README.md")
README, *_ = TEXTS = [(ROOT / path).read_text() for path in PATHS]
ALL = "\n".join(TEXTS)
BLOCKS = re.findall(r"```bash\n(.*?)```", ALL, re.DOTALL)
SMALLER = {"--images": "32", "--epochs": "1", "--test-images": "100"}
PLACEHOLDER = re.compile("[A-Z]+")
REMOVED = re.compile(r"since removed: ((?:`[a-z_]+`(?:, )?)+)")
Command = tuple[str, ...]


def commands_of(block: str) -> list[Command]:
    """Arguments after `python -m upvit_core`, or after torchrun's form of it, of every such line."""
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [tuple(words[words.index("upvit_core") + 1 :]) for words in lines if "upvit_core" in words]


COMMANDS = [(number, command) for number, block in enumerate(BLOCKS) for command in commands_of(block)]
RUNNABLE = [
    (block, command)
    for block, command in COMMANDS
    if "--executor" not in command and not any(PLACEHOLDER.fullmatch(word) for word in command)
]


def output_of(command: Command) -> str | None:
    return command[command.index("--out") + 1] if "--out" in command and command[0] != "runs" else None


class Reader:
    """Runs commands of the READMEs, each once, in a folder for each block, on fewer images than they name."""

    def __init__(self, folder: Path):
        self.folder, self.done = folder, set[tuple[int, Command]]()
        self.data = folder / "demo"
        self.data.mkdir()
        for name, count in zip(DEMO_FILES.values(), (160, 100), strict=True):
            with np.load(DEMO_FOLDER / name) as arrays:
                few = {key: arrays[key][:count] for key in ("images", "labels")}
                np.savez(self.data / name, **few, classes=arrays["classes"])

    def run(self, block: int, command: Command) -> None:
        """Run a command after those that write what it reads."""
        if (block, command) in self.done:
            return
        self.done.add((block, command))
        for word in command:
            if word.startswith("work/") and word != output_of(command):
                self.run(block, writer_of(word, block))
        words = [SMALLER.get(before, word) for before, word in zip(("", *command), command, strict=False)]
        words += ["--root", str(self.data)] if "--data" in words else []
        folder = self.folder / str(block)
        folder.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            if not (folder / "assets").exists():
                (folder / "assets").symlink_to(ROOT / "assets")
            result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (words, result.output, result.exception)


def writer_of(path: str, block: int) -> Command:
    """The command that writes a path, of the same block where there is one."""
    writers = [(number != block, command) for number, command in RUNNABLE if output_of(command) == path]
    return min(writers, key=lambda writer: writer[0])[1]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(tmp_path_factory.mktemp("readme"))


def anchors(text: str) -> set[str]:
    """Names under which GitHub links to headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_ci_runs_the_second_command() -> None:
    second = next(block for block in BLOCKS if "-m tests\n" in block).strip()
    assert second in (ROOT / ".ci" / "run").read_text()


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= 12_288


@pytest.mark.parametrize("path", PATHS)
def test_pictures_and_links_lead_somewhere(path: str) -> None:
    folder, text = (ROOT / path).parent, (ROOT / path).read_text()
    links = [link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links
    for target, _, anchor in links:
        file = folder / target if target else ROOT / path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), f"{target}#{anchor}"


def test_options_of_every_command_exist() -> None:
    group = typer.main.get_command(app)
    assert {command[0] for _, command in COMMANDS} >= {"score", "plan", "prune", "distill", "runs", "export"}
    for _, (verb, *arguments) in COMMANDS:
        group.commands[verb].make_context(verb, list(arguments))


@pytest.mark.parametrize(("block", "command"), RUNNABLE, ids=[f"{b}-{'-'.join(c[:2])}" for b, c in RUNNABLE])
def test_command_works(block: int, command: Command, reader: Reader) -> None:
    reader.run(block, command)


def test_the_python_example_repairs_a_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    code, names = re.subn(r"(?m)^name, data = .*$", 'name, data = "demo", "demo"', example)
    code, counts = re.subn(r"images=2000", "images=64", code)
    assert (names, counts) == (1, 2)
    scope: dict[str, object] = {}
    exec(code, scope)
    teacher, half, upvit = scope["teacher"], scope["half"], scope["upvit"]
    assert half.shape.embed_dim == teacher.shape.embed_dim // 2  # type: ignore[attr-defined]
    assert scope["result"].top1 > 80  # type: ignore[attr-defined]
    assert upvit.load_model("work/half").digest == half.digest  # type: ignore[attr-defined]


def test_every_verb_is_described() -> None:
    names = set(typer.main.get_command(app).commands)
    assert names
    assert not [name for name in names if f"`{name}" not in ALL and f"upvit_core {name}" not in ALL]


def test_every_test_and_benchmark_that_is_named_exists() -> None:
    for path in set(re.findall(r"\btests/[a-z0-9_/]+(?:\.(?:py|txt))?", ALL)):
        assert (ROOT / path).exists(), path
    removed = {name for names in REMOVED.findall(ALL) for name in re.findall(r"[a-z_]+", names)}
    named = set(re.findall(r"\btests\.benchmarks\.([a-z_]+)", ALL))
    folder = ROOT / "tests" / "benchmarks"
    there = {name for name in named | removed if (folder / name).is_dir() or (folder / f"{name}.py").is_file()}
    assert named - there <= removed
    assert not removed & there


def test_headline_figures_are_those_of_the_benchmarks() -> None:
    rows = re.findall(r"(?m)^\|[^|\n]+\|([^|\n]*\d[^|\n]*)\| \w+ \|$", README)
    assert len(rows) == 6
    for figure in re.findall(r"\d[\d.,–]*\d(?: ± [\d.]+)?", " ".join(rows)):
        assert figure in TEXTS[2], figure
