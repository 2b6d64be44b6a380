"""Importance: refine fills in, other scores agree or not, criteria side by side, errors at the cut."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from pages.importance import confidence, criteria
from pages.services import folders
from tests.support import ROOT
from tests.support.reading import PAPER, check, html_of
from upvit_core.importance.agreement import uncertain
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.records.criteria import CRITERIA
from upvit_core.records.scores import ImportanceScores

PAGE = "pages/importance/page.py"
DEMO = ROOT / "assets" / "demo" / "scores.safetensors"
Run = Callable[..., AppTest]


def score(test: AppTest, criterion: str, images: int) -> None:
    test.button(key="score").click().run()
    form = {box.label: box for box in test.selectbox}
    form["Criterion"].select(next(o for o in form["Criterion"].options if o.startswith(criterion)))
    next(n for n in test.number_input if n.label == "Number of images").set_value(images)
    next(b for b in test.button if b.label == "Score").click().run()


def test_the_menu_offers_every_criterion(page: Run) -> None:
    test = page(PAGE, **PAPER)
    test.button(key="score").click().run()
    menu = next(box for box in test.selectbox if box.label == "Criterion")
    assert menu.options == [f"{name} · {entry.menu}" for name, entry in CRITERIA.items()]
    next(field for field in test.text_input if field.label == "Images").set_value("")
    next(b for b in test.button if b.label == "Score").click().run()
    assert "No images were chosen" in test.error[0].value


def test_the_images_are_told_by_the_seed_that_drew_them() -> None:
    record = replace(ImportanceScores.load(DEMO), notes={}, data="val of demo", seed=7)
    assert confidence._images(record)[2] == "seed 7"
    assert confidence._images(replace(record, seed=None))[2] == "val of demo"


def test_undecided_channels_are_told(page: Run) -> None:
    record = ImportanceScores.load(DEMO)
    found = uncertain(record, plan_uniform(record, Ratios.equal(0.5), heads=3))
    count, of = (sum(pair[i] for pair in found.values()) for i in (0, 1))
    assert f"{count:,} of {of:,}" in html_of(page(PAGE, **PAPER))


def test_published_scores_have_no_errors_and_say_so(page: Run, published: Path) -> None:
    assert "no standard errors" in html_of(page(PAGE, open=f"published:{published}"))


def test_refine_is_shown_at_once_and_fills_in(page: Run, jobs_at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[tuple[str, float]] = []
    save = ImportanceScores.save

    def noted(self: ImportanceScores, path: Path) -> None:
        saved.append((Path(path).name, self.notes.get("exact_share", -1.0)))
        save(self, path)

    monkeypatch.setattr(ImportanceScores, "save", noted)
    test = page(PAGE, **PAPER)
    score(test, "refine", 8)
    check(test)
    shares = [share for name, share in saved if name.startswith("refine")]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(0.25, abs=0.01)
    assert [name.split("-")[0] for name, share in saved if share < 0] == ["fisher"], "the estimate alone is kept too"
    chosen = next(box for box in test.selectbox if box.label == "Scores")
    assert chosen.value.startswith("refine-8-0-")
    text = html_of(test)
    assert "25 %" in text
    assert "Fisher trace" in text
    test.session_state["agreement"] = True
    test.run()
    assert not test.exception
    assert html_of(test).count("Spearman") == 3
    folder = next(folders.scores().iterdir())
    records = [ImportanceScores.load(path) for path in folder.glob("*.safetensors")]
    assert {record.criterion for record in records} == {"refine", "fisher"}


def test_stopping_rule_is_shown(page: Run, jobs_at_once: None) -> None:
    test = page(PAGE, **PAPER)
    score(test, "fisher", 64)
    assert re.search(r"half as many keep 9\d\.\d % of the same channels", html_of(test))


def test_criteria_side_by_side(page: Run, jobs_at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteria, "SCORE_IMAGES", 16)
    monkeypatch.setattr(criteria, "TEST_IMAGES", 100)
    test = page(PAGE, **PAPER)
    test.session_state["criteria"] = True
    test.run()
    next(m for m in test.multiselect if m.label == "Criteria").set_value(["l1", "random"]).run()
    next(b for b in test.button if b.label == "Compare").click().run()
    assert not test.exception
    text = html_of(test)
    table = next(t for t in re.findall(r"<table.*?</table>", text, re.DOTALL) if "l1" in t)
    rows = re.findall(r"<tr>(<td>.*?)</tr>", table)
    names = [re.sub("<.*?>", "", row.split("</td>")[0]) for row in rows]
    assert sorted(names) == ["kl", "l1", "random"]
    losses = [float(re.sub("<.*?>", "", row.split("</td>")[1])) for row in rows]
    assert losses == sorted(losses)
    assert np.isfinite(losses).all()
