"""The same command twice writes the same bytes, the seconds that it took aside."""

import re
from pathlib import Path

import pytest

from tests.support.small_run import write_images, write_teacher
from tests.support.verbs import call

SECONDS = re.compile(rb'\\?"seconds\\?": [\d.e-]+')


def content(path: Path) -> tuple[bytes, bytes]:
    """The bytes of a record but for seconds: of safetensors the header, without the spaces at its end, and tensors."""
    written = path.read_bytes()
    if path.suffix != ".safetensors":
        return SECONDS.sub(b"", written), b""
    end = 8 + int.from_bytes(written[:8], "little")
    return SECONDS.sub(b"", written[8:end]).rstrip(), written[end:]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twice")
    write_teacher(folder / "teacher")
    write_images(folder / "images", train=20)
    call("score", folder / "teacher", "--criterion", "l2", "--out", folder / "scores.safetensors")
    half = ("--residual", 0.5, "--attention", 0.5, "--ffn", 0.5)
    call("plan", folder / "scores.safetensors", *half, "--out", folder / "plan.json")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "score T --criterion fisher --out OUT/scores.safetensors DATA",
        "score T --criterion kl --out OUT/scores.safetensors DATA",
        "score T --criterion refine --out OUT/scores.safetensors DATA",
        "score T --basis directions --criterion fisher --out OUT/scores.safetensors DATA",
        "score-blocks T --depth 2 --out OUT/blocks.json DATA",
        "plan S --residual 0.5 --attention 0.25 --ffn 0.5 --out OUT/plan.json",
        "prune T PLAN --repair --out OUT/thin DATA",
        "map T --scores S --cuts 3 --fitted-to 20 --out OUT/map.json DATA",
        "elastic T --out OUT/elastic DATA",
        "export T --out OUT/model.onnx",
    ],
    ids=lambda words: " ".join(words.split()[:1] + [word for word in words.split() if word in ("kl", "directions")]),
)
def test_records_are_the_same(home: Path, tmp_path: Path, words: str) -> None:
    names = {"T": home / "teacher", "S": home / "scores.safetensors", "PLAN": home / "plan.json"}
    written = []
    for name in ("once", "again"):
        out = tmp_path / name
        out.mkdir()
        filled = words.replace("DATA", f"--data {home / 'images'} --images 20").replace("OUT", str(out))
        call(*(names.get(word, word) for word in filled.split()))
        files = sorted(path for path in out.rglob("*") if path.is_file())
        written.append({str(path.relative_to(out)): content(path) for path in files})
    once, again = written
    assert once
    assert once.keys() == again.keys()
    assert [name for name in once if once[name] != again[name]] == []
