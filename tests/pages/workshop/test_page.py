from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from streamlit.testing.v1 import AppTest

from pages.services import evaluation, jobs
from pages.workshop import host
from pages.workshop.exercises import EXERCISES, FFN_BLOCK, REFERENCE, Demo, what_if_of
from pages.workshop.room import Best, Room, RoomError, hashed
from tests.support.at_once import at_once

PAGE = "pages/workshop/page.py"
BY_KEY = {exercise.key: exercise for exercise in EXERCISES}


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path / "room")


@pytest.fixture
def demo() -> Demo:
    from pages.services import open_model

    model = open_model.inspect("demo")
    assert model is not None
    assert model.bundled is not None
    return Demo(replace(model, dataset="demo"), model.bundled)


def result(top1: float, kl: float = 0.1) -> SimpleNamespace:
    return SimpleNamespace(top1=top1, kl=kl, images=1000)


def test_the_list_is_ordered_by_solved_then_by_the_best_plan(room: Room) -> None:
    for token, name, solved, top1 in (
        ("a", "Ada", 2, 0.0),
        ("b", "Ben", 3, 40.0),
        ("c", "Cleo", 3, 50.0),
        ("d", "", 8, 0),
    ):
        for exercise in EXERCISES[:solved]:
            room.solved(token, exercise.key, Best(top1=top1, macs=1, words="") if top1 else None)
        if name:
            room.rename(token, name)
    assert [p.name for p in room.leaderboard()] == ["Cleo", "Ben", "Ada"]
    assert "Ada" not in hashed("a")
    room.solved("b", "beat", Best(top1=60.0, macs=1, words=""))
    room.solved("b", "beat", Best(top1=10.0, macs=1, words=""))
    assert next((p.name, p.best.top1 if p.best else None) for p in room.leaderboard()) == ("Ben", 60.0)
    room.clear()
    assert room.people() == {}


@pytest.mark.parametrize("name", ["", "   ", "x" * 21, "a\nb\x00"])
def test_no_nickname_but_a_short_printable_one(room: Room, name: str) -> None:
    with pytest.raises(RoomError):
        room.rename("a", name)


def test_a_nickname_belongs_to_one(room: Room) -> None:
    room.rename("a", "Ada")
    room.rename("a", "ada")
    with pytest.raises(RoomError, match="taken"):
        room.rename("b", "ADA")


def test_thirty_people_at_once_lose_nothing(room: Room) -> None:
    def take_part(token: str) -> None:
        for exercise in EXERCISES[:3]:
            room.solved(token, exercise.key)
        room.rename(token, f"person {token}")

    at_once(lambda number: take_part(str(number)), 30)
    assert [len(p.solved) for p in room.leaderboard()] == [3] * 30


def test_a_torn_file_is_an_empty_room(room: Room) -> None:
    room.solved("a", "parts")
    room.file.write_bytes(room.file.read_bytes()[:20])
    assert room.people() == {}
    room.solved("a", "parts")
    assert room.person("a").solved == ("parts",)


def test_parts_are_judged_by_the_least_measured_kl(demo: Demo) -> None:
    judge = BY_KEY["parts"].judge
    for least, name in enumerate(("Residual", "Attention", "FFN")):
        results = [result(50, 0.1 if i == least else 0.5) for i in range(3)]
        assert judge(demo, [name], results).right
        assert not judge(demo, ["FFN" if name != "FFN" else "Residual"], results).right


def test_the_limit_is_the_last_share_within_a_point(demo: Demo) -> None:
    judge = BY_KEY["limit"].judge
    assert judge(demo, [50], [result(93), result(92.1), result(91.9)]).right
    assert "too much" in judge(demo, [55], [result(93), result(91.9), result(90)]).why
    assert "More is possible" in judge(demo, [45], [result(93), result(92.5), result(92.1)]).why


def test_heads_are_judged_by_the_fewest_that_hold(demo: Demo) -> None:
    judge = BY_KEY["heads"].judge
    assert judge(demo, [3], [result(72), result(46)]).right
    assert not judge(demo, [6], [result(93), result(72)]).right
    assert not judge(demo, [2], [result(46), result(37)]).right
    assert judge(demo, [1], [result(71)]).right


def test_a_sum_is_compared_with_what_was_measured(demo: Demo) -> None:
    judge = BY_KEY["sum"].judge
    worse, same, better = BY_KEY["sum"].options
    assert judge(demo, [worse], [result(80, 10.0)]).right
    assert judge(demo, [better], [result(80, 1e-6)]).right
    told = float(judge(demo, [same], [result(80, 1.0)]).why.split()[3]) ** -1
    assert judge(demo, [same], [result(80, told)]).right


def test_beating_needs_fewer_macs_and_more_top1(demo: Demo) -> None:
    judge = BY_KEY["beat"].judge
    light, heavy = [30, 70, 6, 70], [0, 0, 6, 0]
    assert demo.macs(what_if_of(light)) < demo.macs(REFERENCE) < demo.macs(what_if_of(heavy))
    won = judge(demo, light, [result(33), result(16)])
    assert won.right
    assert won.best == Best(top1=33, macs=demo.macs(what_if_of(light)), words="30/70/70 %, 6 heads")
    assert not judge(demo, light, [result(16), result(16)]).right
    assert not judge(demo, heavy, [result(93), result(16)]).right


@pytest.mark.parametrize("number", range(len(EXERCISES)))
def test_every_exercise_can_be_asked(page: Callable[..., AppTest], number: int) -> None:
    test = page(PAGE, exercise=str(number + 1))
    assert not test.exception
    assert not test.error
    assert EXERCISES[number].title in [h.value.split(" · ")[-1] for h in test.header]


def test_an_answer_is_measured_and_ticked_off(page: Callable[..., AppTest], jobs_at_once: None, demo: Demo) -> None:
    """The verdict agrees with cutting the weights by hand."""
    import torch

    from upvit_core.data import open_images, proxy_indices
    from upvit_core.models.checkpoint import load_model

    loaded = load_model("demo")
    images = open_images("demo", "val", pretrained_cfg=loaded.pretrained_cfg, num_classes=10)
    x, _ = next(iter(images.batches(500, indices=proxy_indices(images, 500, seed=0))))
    number = BY_KEY["unmissed"]
    place = EXERCISES.index(number)
    with torch.inference_mode():
        before = loaded.model(x).argmax(1)
        fc2 = loaded.model.blocks[FFN_BLOCK].mlp.fc2.weight
        changed = {}
        values = demo.scores.ffn(FFN_BLOCK)
        for channel in (int(values.argmax()), int(values.argmin())):
            kept = fc2[:, channel].clone()
            fc2[:, channel] = 0
            changed[channel] = int((loaded.model(x).argmax(1) != before).sum())
            fc2[:, channel] = kept
    (worst, flips), (best, none) = changed.items()
    assert none == 0 < flips
    test = page(PAGE, exercise=str(place + 1))
    for channel, count in ((worst, flips), (best, 0)):
        test.number_input(key="ws-unmissed").set_value(channel).run()
        test.button(key="ws-check").click().run()
        assert not test.exception
        told = (test.success if count == 0 else test.warning)[0].value
        assert f"Without it, {count} of 500 predictions change." in told
    assert any("1 of 8 solved" in caption.value for caption in test.caption)


def test_the_code_holds_the_address() -> None:
    assert host.own_address().endswith("/workshop")
    picture = host.qr_picture("http://192.0.2.7:8501/workshop")
    assert picture.startswith("data:image/svg+xml")
    assert picture != host.qr_picture("http://192.0.2.8:8501/workshop")


def test_images_of_the_exercises_are_the_previews(demo: Demo) -> None:
    """So that an answer that someone has measured on Trade-off is not measured twice."""
    plan = demo.plan(REFERENCE)
    assert demo.preview(REFERENCE).key == evaluation.preview_key(demo.model, plan)


def test_directions_are_found_before_they_are_measured(demo: Demo) -> None:
    demo = Demo(replace(demo.model, directions=None), demo.scores)
    found = BY_KEY["way"].measure(demo, ["Channels"])
    assert [job.title for job in found[2:]] == ["Finding directions"] * 2


def test_directions_are_planned_and_measured_as_on_the_command_line(
    demo: Demo, jobs_at_once: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`score --basis directions`, `plan --basis directions`, `prune --repair`, then the same images by hand."""
    from typer.testing import CliRunner

    from upvit_core.cli import app
    from upvit_core.data import open_images, proxy_indices
    from upvit_core.evaluation import evaluate
    from upvit_core.models.checkpoint import load_model
    from upvit_core.models.predict import predict

    monkeypatch.setattr(evaluation, "CALIBRATION_IMAGES", 40)
    monkeypatch.setattr(evaluation, "EVALUATION_IMAGES", 60)
    demo = Demo(replace(demo.model, directions=None), demo.scores)
    way = BY_KEY["way"]
    found = way.measure(demo, ["Channels"])
    assert "Finding directions" in [job.title for job in jobs.workers().all()]
    assert [(job.state, job.error) for job in found] == [("done", "")] * 4

    scores, plan, thin = (str(tmp_path / name) for name in ("scores.safetensors", "plan.json", "thin"))
    said = "--residual 0.5 --attention 0.5 --ffn 0.5 --basis directions"
    for command in (
        f"score demo --data demo --basis directions --images 40 --seed 0 --out {scores}",
        f"plan {scores} {said} --heads 6 --out {plan}",
        f"prune demo {plan} --repair --data demo --images 40 --out {thin}",
    ):
        result = CliRunner().invoke(app, command.split())
        assert result.exit_code == 0, result.output
    loaded, student = load_model("demo"), load_model(thin)
    test = open_images("demo", "val", pretrained_cfg=loaded.pretrained_cfg, num_classes=10)
    batches = list(test.batches(60, indices=proxy_indices(test, 60, seed=0)))
    teacher, _ = predict(loaded.model, batches)
    expected = evaluate(student.model, batches, teacher_logits=teacher)
    ours = found[3].result
    assert (ours.top1, ours.images) == (expected.top1, 60)
    assert ours.kl == pytest.approx(expected.kl, rel=1e-4)
