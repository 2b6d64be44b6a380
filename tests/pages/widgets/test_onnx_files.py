import shutil
from functools import partial
from pathlib import Path

import onnxruntime
import pytest
from streamlit.testing.v1 import AppTest

from tests.support import ROOT
from tests.support.made_runs import made_run
from upvit_core import export
from upvit_core.export import int8
from upvit_core.runs import RunStore


def script(root: str) -> None:
    from pages.widgets.onnx_files import buttons
    from upvit_core.records.task import IMAGES
    from upvit_core.runs import RunStore

    store = RunStore(root)
    buttons(store.get(store.list()[0].id), IMAGES)


def test_an_8_bit_file_is_made_on_request_and_says_what_was_measured(
    jobs_at_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "export_int8", partial(export.export_int8, images=100))
    monkeypatch.setattr(int8, "TIMED_SECONDS", 0.0)
    run = made_run(RunStore(tmp_path), 0.5)
    shutil.copytree(ROOT / "assets/demo", run.model, dirs_exist_ok=True)
    test = AppTest.from_function(script, args=(str(tmp_path),), default_timeout=300).run()
    next(b for b in test.button if b.label == "Make 8-bit ONNX").click().run()
    assert not test.exception
    assert not test.error
    file = run.folder / "model.int8.onnx"
    assert onnxruntime.InferenceSession(str(file)).get_inputs()[0].name == "images"
    told = next(c.value for c in test.caption if "float32" in c.value)
    assert told.startswith(f"{file.stat().st_size / 1024:,.0f} KiB where float32 takes")
    assert "same 100 images" in told
    assert [b.label for b in test.button] == ["Make ONNX"]
    assert [b.label for b in test.get("download_button")] == ["Download 8-bit ONNX"]
