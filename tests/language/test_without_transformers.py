"""Without `transformers`: one sentence with the command that installs it, and nothing half written."""

import sys
from pathlib import Path

import pytest

from tests.support.tiny_text import folder_of_weights, write_text
from upvit_core.cli import main
from upvit_core.errors import UnsupportedModelError
from upvit_core.models.checkpoint import load_model

SENTENCE = "Language models need Hugging Face's transformers; install it with pip install 'transformers>=4.50,<6'."


@pytest.fixture(autouse=True, params=[("transformers",), ("transformers", "tokenizers")], ids=lambda names: names[-1])
def missing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in request.param:
        monkeypatch.setitem(sys.modules, name, None)  # import then raises ImportError


@pytest.mark.parametrize("ours", [True, False])
def test_the_library_says_what_to_install(ours: bool, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        load_model(folder_of_weights(tmp_path / "lm", ours=ours))
    assert str(error.value) == SENTENCE


@pytest.mark.parametrize(
    "command",
    [
        "score {lm} --data {lm}/text.txt --out {out}/scores.safetensors",
        "evaluate {lm} --data {lm}/text.txt",
        "demo train-language --out {out}/made --text {text}",
    ],
)
def test_the_command_line_says_what_to_install(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = folder_of_weights(tmp_path / "lm", ours=True), tmp_path / "out"
    out.mkdir()
    text = write_text(tmp_path / "text.txt")
    monkeypatch.setattr(sys, "argv", ["upvit", *command.format(lm=folder, out=out, text=text).split()])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == f"Error: {SENTENCE}\n"
    assert not list(out.iterdir())
