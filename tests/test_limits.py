"""The limits of a host: roots, traversal, links, giant values, hours, runs, uploads, from environment and secrets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from upvit_core.errors import LimitError
from upvit_core.limits import Limits


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """allowed/model and allowed/images/train/cat, with secret/ beside."""
    (tmp_path / "allowed" / "images" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "allowed" / "model").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("sesame")
    return tmp_path


def test_nothing_set_is_nothing_limited(place: Path) -> None:
    limits = Limits.of({})
    assert limits == Limits(
        roots=None, longest_run_hours=None, runs_per_session=None, runs_in_all=None, uploads=None, host=None,
        host_names=(), maps=True,
    )  # fmt: skip
    limits.confine(str(place / "secret"))


def test_roots_let_in_what_is_under_them_and_names(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    limits = Limits.of({"UPVIT_ROOTS": f"{place}/allowed{os.pathsep}~/models"})
    inside = ("allowed", "allowed/model", str(place / "allowed/images"), "~/models/x.pth", "allowed/../allowed/model")
    for good in (
        *inside,
        "demo",
        "torch/cifar10",
        "deit_small_patch16_224",
        "hf-hub:timm/vit_x.augreg_in1k",
        "hf-hub:timm/x@main",
    ):
        limits.confine(good)
    limits.confine(str(place / "secret"), app_folders=(place / "secret",))


@pytest.mark.parametrize(
    "bad",
    [
        "secret", "secret/key", "./secret", "allowed/../secret", "../x", "allowed/model/../../secret/key",
        "/etc/passwd",
        "/", "~", "~root/.ssh", "/proc/self/environ", "file:///etc/passwd", "local-dir:/etc", "//etc/passwd", ".", "..",
        "allowed2", "x\\..\\y/../../secret", "/nowhere/at/all", "no such thing/../..", "http://host/x", "a" * 5000,
        "allowed/\0/../secret", "hf-hub:../../secret", " /etc/passwd", "\t/etc", "local-dir: /etc", " local-dir:/etc",
        "local-dir:../secret", "local-dir:~root",
    ],
)  # fmt: skip
def test_everything_else_is_refused_in_one_sentence(place: Path, monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    monkeypatch.chdir(place)
    (place / "allowed2").mkdir()
    limits = Limits.of({"UPVIT_ROOTS": f"{place}/allowed"})
    with pytest.raises(LimitError) as error:
        limits.confine(bad)
    assert "sesame" not in str(error.value)
    assert len(str(error.value)) < 1000 + len(bad[:200]) + len(str(place))


def test_links_are_judged_by_where_they_lead(place: Path) -> None:
    limits = Limits.of({"UPVIT_ROOTS": str(place / "allowed")})
    (place / "allowed" / "good").symlink_to(place / "allowed" / "model")
    limits.confine(str(place / "allowed" / "good"))
    for link in ("model/model.safetensors", "images/train/dog", "images/val"):
        (place / "allowed" / link).symlink_to(place / "secret")
        folder = place / "allowed" / link.partition("/")[0]
        with pytest.raises(LimitError, match="may not be read here"):
            limits.confine(str(folder))
        (place / "allowed" / link).unlink()
        limits.confine(str(folder))
    (place / "allowed" / "out").symlink_to(place / "secret")
    for path in ("out", "out/key", "out/../secret/key"):
        with pytest.raises(LimitError, match="may not be read here"):
            limits.confine(str(place / "allowed" / path))


def test_a_root_that_is_a_link_is_followed(place: Path) -> None:
    (place / "data").symlink_to(place / "allowed")
    limits = Limits.of({"UPVIT_ROOTS": str(place / "data")})
    limits.confine(str(place / "data" / "model"))
    limits.confine(str(place / "allowed" / "model"))


def test_no_roots_at_all_leaves_only_the_app_s_own(place: Path) -> None:
    limits = Limits.of({"UPVIT_ROOTS": ""})
    with pytest.raises(LimitError, match="none but the app's own"):
        limits.confine(str(place / "allowed"))
    limits.confine("demo")


@pytest.mark.parametrize(
    ("name", "value"),
    [("UPVIT_LONGEST_RUN_HOURS", "two"), ("UPVIT_LONGEST_RUN_HOURS", "-1"), ("UPVIT_LONGEST_RUN_HOURS", "inf"),
     ("UPVIT_RUNS_PER_SESSION", "0"), ("UPVIT_RUNS_PER_SESSION", "nan"), ("UPVIT_UPLOADS", "maybe"),
     ("UPVIT_RUNS_PER_SESSION", "9" * 400)],
)  # fmt: skip
def test_a_limit_that_is_not_understood_is_told(name: str, value: str) -> None:
    with pytest.raises(LimitError, match=name):
        Limits.of({name: value})


def test_values() -> None:
    limits = Limits.of({"UPVIT_LONGEST_RUN_HOURS": "0.5", "UPVIT_RUNS_PER_SESSION": "3", "UPVIT_UPLOADS": "off"})
    assert (limits.longest_run_hours, limits.runs_per_session, limits.uploads, limits.maps) == (0.5, 3, False, True)
    assert not Limits.of({"UPVIT_MAPS": "off"}).maps


def test_secrets_of_streamlit_become_the_environment(tmp_path: Path) -> None:
    """The server reads secrets into its environment when it starts; workers inherit it."""
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "secrets.toml").write_text('UPVIT_RUNS_PER_SESSION = 2\nUPVIT_UPLOADS = "off"\n')
    code = (
        "import os\nfrom streamlit.runtime.secrets import secrets_singleton\nsecrets_singleton.load_if_toml_exists()\n"
        "from upvit_core.limits import Limits\nprint(Limits.of(os.environ))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "runs_per_session=2" in done.stdout
    assert "uploads=False" in done.stdout


def test_the_default_bind_is_loopback() -> None:
    config = (ROOT / ".streamlit" / "config.toml").read_text()
    assert 'address = "localhost"' in config
