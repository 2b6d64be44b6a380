from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.support.made_runs import made_run
from upvit_core.runs import RunSpec, RunStore
from upvit_core.runs.commands import commands
from upvit_core.training.settings import FINETUNE_PRESETS

PAGE = "pages/runs/page.py"
Page = Callable[..., AppTest]


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are ordered and not started."""
    from upvit_core.runs.executors.local import LocalExecutor

    monkeypatch.setattr(LocalExecutor, "submit", lambda self, run: None)


def form(page: Page) -> AppTest:
    """The form that takes models to other images."""
    test = page(PAGE)
    test.button(key="new-run").click().run()
    assert test.button(key="first-run").label.startswith("Distil Demo ViT at")
    return test.segmented_control(key="new-run-kind").set_value("Go to other images").run()


def test_start_orders_the_same_settings_for_all(page: Page, store: RunStore, no_process: None, tmp_path: Path) -> None:
    done = made_run(store, 0.5, name="half")
    test = form(page)
    assert test.button(key="transfer-start").disabled
    test.text_input(key="transfer-images").set_value(str(tmp_path / "flowers.tar"))
    test.selectbox(key="transfer-what").set_value("head only")
    test.number_input(key="transfer-workers").set_value(1)
    test.checkbox(key="transfer-scratch").check().run()
    test.button(key="transfer-start").click().run()
    assert not test.exception
    orders = [s.spec for s in reversed(store.list()) if s.spec is not None and s.spec.kind == "finetune"]
    assert [o.student for o in orders] == ["demo", str(done.model), str(done.model)]
    assert len({(o.data, o.epochs, o.group) for o in orders}) == 1
    expected = FINETUNE_PRESETS["demo"].model_copy(update={"workers": 1})
    assert [o.settings for o in orders] == [
        expected.model_copy(update={"head_only": True}), expected.model_copy(update={"head_only": True}),
        expected.model_copy(update={"from_scratch": True}),
    ]  # fmt: skip
    assert len(test.dataframe[0].value) == 4


def test_each_of_the_next_three_starts_at_a_press(
    page: Page, store: RunStore, no_process: None, jobs_at_once: None
) -> None:
    test = page(PAGE)
    proposed: list[str] = []
    for _ in range(2):
        test.button(key="new-run").click().run()
        labels = [test.button(key=f"next-{number}").label for number in range(3)]
        assert not set(labels) & set(proposed), "what is queued is not proposed again"
        proposed.append(labels[0])
        test.button(key="next-0").click().run()
        assert not test.exception
    assert len(store.list()) == 2
    assert proposed[0].endswith("before training")


def test_accuracy_stands_side_by_side(page: Page, store: RunStore) -> None:
    for name, before, now in (("whole to x", 10.0, 61.5), ("half to x", 10.0, 60.0)):
        run = store.create(
            RunSpec(
                kind="finetune", name=name, student="demo", data="x", epochs=1, group="demo to x 1", device="cpu",
                settings=FINETUNE_PRESETS["demo"],
            )
        )  # fmt: skip
        common = {"images": 400, "images_per_s": 900.0, "seconds": 3.0, "epoch": 1.0}
        run.append_metrics({"step": 0, "phase": "start", "top1": before, **common})
        run.append_metrics({"step": 9, "phase": "final", "top1": now, **common})
        run.write_state(store.state(run.id).model_copy(update={"state": "done", "top1": now}))
    test = page(PAGE)
    assert not test.exception
    table = test.dataframe[0].value.set_index("Run")
    assert table.loc["half to x", "against the original, points"] == pytest.approx(-1.5)
    assert table.loc["whole to x", "Top-1 now, %"] == 61.5
    text = commands(run)
    assert text.startswith("python -m upvit_core finetune demo --data x --epochs 1 --preset demo --device cpu --out")
