"""Out and back: a plan made in the studio is done elsewhere from its folder; the run's folder opens here again."""

import io
import json
import shlex
import shutil
import zipfile
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from tests.support import ROOT
from tests.support.small_run import run_to_end, small_home, spec_for, weights_of
from upvit_core.cli import app
from upvit_core.errors import RunError
from upvit_core.runs import RunStore
from upvit_core.runs.bundle import command_of, read_order, write_order, zipped_order


def test_a_plan_goes_out_as_a_folder_and_comes_back_as_a_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(tmp_path / "here")
    here = store.create(spec_for(home))
    run_to_end(store, here)

    machine = tmp_path / "other machine"
    machine.mkdir()
    zipfile.ZipFile(io.BytesIO(zipped_order(spec_for(home), "order"))).extractall(machine)
    shutil.copytree(home / "images", machine / "photos")
    readme = (machine / "order" / "README.md").read_text()
    command = next(line for line in readme.splitlines() if line.startswith("python -m upvit_core"))
    assert command == command_of(spec_for(home), "order")
    moved = home.rename(tmp_path / "gone")  # nothing of this machine is at hand there
    try:
        monkeypatch.chdir(machine)
        words = shlex.split(command.replace("DATA", "photos"))[3:]
        done = CliRunner().invoke(app, [*words, "--device", "cpu"])
        assert done.exit_code == 0, (done.output, done.exception)
    finally:
        moved.rename(home)
    folder = Path(done.output.split("\n")[0])
    assert folder.parent == machine / "runs"

    back = shutil.copytree(folder, store.root / folder.name)
    shutil.rmtree(machine)
    assert store.state(back.name).state == "done"
    run = store.get(back.name)
    assert run.spec.plan == here.spec.plan
    assert weights_of(run) == weights_of(here)
    assert {summary.id for summary in store.list()} == {here.id, back.name}

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("UPVIT_RUNS", str(store.root))
    monkeypatch.setenv("UPVIT_HOME", str(tmp_path / "studio"))
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
    page.switch_page("pages/runs/page.py").run()
    assert not page.exception
    assert page.selectbox(key="one-run").options


def test_a_run_that_still_ran_there_is_interrupted_here_and_says_what_is_missing(home: Path, tmp_path: Path) -> None:
    there, here = RunStore(tmp_path / "there"), RunStore(tmp_path / "here")
    run = there.create(spec_for(home).model_copy(update={"teacher": "/only/there", "data": "/only/there too"}))
    state = there.state(run.id)
    run.write_state(state.model_copy(update={"state": "running", "pid": 1, "started": 1, "boot": "another machine's"}))
    shutil.copytree(run.folder, here.root / run.id)
    (summary,) = here.list()
    assert summary.state.state == "interrupted"
    here.resume(run.id)
    with pytest.raises(AssertionError, match="/only/there"):
        run_to_end(here, here.get(run.id))
    assert here.state(run.id).state == "failed"


def test_names_stay_names_and_nothing_of_this_session_leaves(home: Path, tmp_path: Path) -> None:
    spec = spec_for(home).model_copy(
        update={"teacher": "demo", "data": "demo", "owner": "ab12", "device": "cuda:3", "created": 5}
    )
    folder = write_order(spec, tmp_path / "order")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "plan.json", "spec.json"]
    read = read_order(folder)
    assert (read.teacher, read.data, read.owner, read.device, read.created) == ("demo", "demo", "", "auto", 0)
    assert "--data" not in command_of(spec, "order")
    assert read.plan == spec.plan == json.loads((folder / "plan.json").read_text())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', "9" * 5000])
def test_a_broken_order_is_refused_with_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "spec.json").write_text(content)
    with pytest.raises(RunError, match="is not a valid run"):
        read_order(tmp_path)
    with pytest.raises(RunError, match="holds no order"):
        read_order(tmp_path / "nowhere")


def test_an_order_without_its_teacher_is_refused(tmp_path: Path) -> None:
    home = small_home(tmp_path / "home")
    folder = write_order(spec_for(home), tmp_path / "order")
    shutil.rmtree(folder / "teacher")
    with pytest.raises(RunError, match="no folder teacher"):
        read_order(folder)
    with pytest.raises(RunError, match="exists already"):
        write_order(spec_for(home), folder)
