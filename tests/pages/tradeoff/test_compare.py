import contextlib
import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pages.services import open_model
from pages.tradeoff import saved_plans
from pages.tradeoff.undo import UndoStack
from tests.support.reading import PAPER
from upvit_core.errors import PlanError
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.plan import PruningPlan

PAGE = "pages/tradeoff/page.py"
HALF = WhatIf(50, 50, 3, 50)


@pytest.fixture
def demo() -> open_model.OpenModel:
    model = open_model.inspect("demo")
    assert model is not None
    return model


def plan_of(model: open_model.OpenModel, what_if: WhatIf) -> PruningPlan:
    assert model.bundled is not None
    return what_if.plan(model.bundled)


def test_a_plan_lives_with_its_model_and_travels_as_a_file(demo: open_model.OpenModel, tmp_path: Path) -> None:
    plan = plan_of(demo, HALF)
    saved_plans.save(demo, "  Half,  for  all ", plan, HALF)
    (kept,) = saved_plans.all_saved(demo)
    assert (kept.name, kept.plan.digest, kept.what_if) == ("Half, for all", plan.digest, HALF)
    (tmp_path / "plan.json").write_text(saved_plans.file_content(kept.name, kept.plan, kept.what_if))
    assert PruningPlan.load(tmp_path / "plan.json").digest == plan.digest
    again = saved_plans.read((tmp_path / "plan.json").read_bytes(), "plan", demo.shape)
    assert (again.name, again.what_if) == ("Half, for all", HALF)
    saved_plans.save(demo, "half, for ALL", plan_of(demo, WhatIf(25, 25, 6, 25)), None)
    assert [k.name for k in saved_plans.all_saved(demo)] == ["half, for ALL"]
    saved_plans.remove(demo, "half, for ALL")
    assert saved_plans.all_saved(demo) == []


@pytest.mark.parametrize(
    "odd",
    [{"residual": "<b>"}, {"residual": 10**400}, {"attention": -1}, {"ffn": True}, {"heads": 4}, {"heads": [3]},
     {"basis": "magic"}, {"repair": "yes"}, {"round_to": 7}, {"allocation": {}}, {"depth": 99}, {"depth": 1.5},
     {"widths": "9" * 5000}, {"widths": 7}, {"order": "never"}, {"reduction": "x"}, {"residual": None}],
)  # fmt: skip
def test_sliders_are_not_set_to_what_they_cannot_say(demo: open_model.OpenModel, odd: dict[str, object]) -> None:
    told = asdict(HALF)
    file = json.loads(saved_plans.file_content("half", plan_of(demo, HALF), HALF))
    for what_if, found in ((told, HALF), ({**told, **odd}, None)):
        file["requested"]["what_if"] = what_if
        assert saved_plans.read(json.dumps(file).encode(), "half", demo.shape).what_if == found


def test_malformed_and_giant_plan_files_are_refused(demo: open_model.OpenModel) -> None:
    """A thousand broken files: each is read, or refused with a sentence."""
    good, rng = saved_plans.file_content("half", plan_of(demo, HALF), HALF).encode(), random.Random(0)
    for _ in range(1000):
        broken = bytearray(good)
        for _ in range(rng.randint(1, 5)):
            place = rng.randrange(len(broken))
            if rng.random() < 0.3:
                del broken[place : place + rng.randint(1, 400)]
            else:
                broken[place] = rng.choice(b'0123456789{}[]",:\xff\x00-e')
        with contextlib.suppress(PlanError):
            saved_plans.read(bytes(broken), "half", demo.shape)
    for content in (b"[" * 10**6, b'{"a":' * 10**5, b" " * (saved_plans.MOST_BYTES + 1), b"9" * 10**6, b"\xff\xfe"):
        with pytest.raises(PlanError):
            saved_plans.read(content, "half", demo.shape)
    for name in ("a\nb", "\u202e", "x" * 61, "../../x", "\0"):
        with contextlib.suppress(PlanError):
            saved_plans.save(demo, name, plan_of(demo, HALF), HALF)
    assert {path.parent for path in saved_plans.folder(demo).parent.rglob("*.json")} <= {saved_plans.folder(demo)}


def test_what_is_no_plan_of_this_model_is_told(demo: open_model.OpenModel) -> None:
    plan = plan_of(demo, HALF)
    with pytest.raises(PlanError, match="is not a valid plan"):
        saved_plans.read(b"{}", "mine", demo.shape)
    from upvit_core.records.known_shapes import deit_shape

    with pytest.raises(PlanError, match="shaped otherwise"):
        saved_plans.read(plan.to_json().encode(), "mine", deit_shape("small"))
    with pytest.raises(PlanError, match="not a name"):
        saved_plans.save(demo, " ", plan, HALF)
    foreign = json.loads(plan.to_json()) | {"requested": {"what_if": {"residual": 50}, "name": 7}}
    kept = saved_plans.read(json.dumps(foreign).encode(), "mine", demo.shape)
    assert kept.what_if is None
    saved_plans.folder(demo).mkdir(parents=True)
    (saved_plans.folder(demo) / "torn.json").write_text("{")
    assert saved_plans.all_saved(demo) == []


def test_undo_and_redo_walk_the_trail() -> None:
    trail, steps = UndoStack(), [WhatIf(n, n, 3, n) for n in (10, 20, 30)]
    for step in (*steps, steps[-1]):
        trail.note(step)
    assert trail.step(1) is None
    assert [trail.step(-1), trail.step(-1), trail.step(-1)] == [steps[1], steps[0], None]
    assert trail.step(1) == steps[1]
    trail.note(WhatIf(99, 0, 3, 0))
    assert trail.step(1) is None
    assert trail.step(-1) == steps[1]


def test_undo_brings_the_sliders_back(page: Callable[..., AppTest]) -> None:
    test = page(PAGE)
    test.slider(key="ffn").set_value(80).run()
    test.slider(key="ffn").set_value(90).run()
    test.button(key="undo").click().run()
    assert test.slider(key="ffn").value == 80
    test.button(key="undo").click().run()
    assert test.slider(key="ffn").value == 50
    assert test.button(key="undo").disabled
    test.button(key="redo").click().run()
    assert not test.exception
    assert test.slider(key="ffn").value == 80


def test_two_plans_are_told_apart_and_swapped(page: Callable[..., AppTest], demo: open_model.OpenModel) -> None:
    saved_plans.save(demo, "light", plan_of(demo, WhatIf(25, 25, 6, 25)), WhatIf(25, 25, 6, 25))
    test = AppTest.from_file(str(Path(PAGE).resolve()), default_timeout=60)
    test.session_state["pictures"] = "Compare"
    for key, value in PAPER.items():
        test.query_params[key] = value
    test.run()
    assert not test.exception
    assert test.selectbox(key="plan-b").value == "Saved: light"
    table = next(e.proto.body for e in test.get("html") if "B against A" in str(e.proto.body))
    assert "173.48 k" in table
    assert "384.63 k" in table
    assert "Loads in plain timm" in table
    test.button(key="swap").click().run()
    assert test.selectbox(key="plan-a").value == "Saved: light"
    test.button(key="plan-a-set").click().run()
    assert test.slider(key="residual").value == 25
