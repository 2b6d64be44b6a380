"""The losses of a thinner model by class, against a slow loop; and the record that a run keeps of them."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.made_runs import made_run
from upvit_core.records.by_class import Answered, by_class
from upvit_core.runs import RunStore


@pytest.mark.parametrize(("classes", "images"), [(3, 200), (10, 60), (1000, 1500)])
def test_classes_confusions_and_flips_equal_a_slow_loop(classes: int, images: int) -> None:
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, images)
    first, second = (rng.normal(size=(images, classes)) + 4 * np.eye(classes)[labels] for _ in range(2))
    found = by_class(labels, first, second)
    assert found == by_class(labels, first.argmax(1), second.argmax(1))
    seen: dict[int, list[int]] = {}
    pairs: dict[tuple[int, int], int] = {}
    lost, won = [], []
    for i in range(images):
        label = int(labels[i])
        was, now = (max(range(classes), key=lambda c: row[c]) for row in (first[i], second[i]))
        row = seen.setdefault(label, [0, 0, 0])
        row[0] += 1
        row[1] += was == label
        row[2] += now == label
        if was != now and now != label:
            pairs[was, now] = pairs.get((was, now), 0) + 1
        if was == label != now:
            lost.append(i)
        if was != label == now:
            won.append(i)
    assert {c.label: [c.images, c.before, c.after] for c in found.classes} == seen
    assert [c.after - c.before for c in found.classes] == sorted(now - was for _, was, now in seen.values())
    assert {(c.before, c.after): c.images for c in found.confusions} == pairs
    assert [c.images for c in found.confusions] == sorted(pairs.values(), reverse=True)
    assert (list(found.lost), list(found.won)) == (lost, won)
    worst = found.classes[0]
    assert worst.points == 100 * (seen[worst.label][2] - seen[worst.label][1]) / seen[worst.label][0]


def test_a_run_without_whole_answers_keeps_none(tmp_path: Path) -> None:
    run = made_run(RunStore(tmp_path), 0.5)
    (run.folder / "classes.json").write_text('{"names": [], "labels": [0], "before": [0], "after": []}')
    assert run.answered is None
    kept = Answered(names=["a", "b"], labels=[0, 1], before=[0, 1], after=[0, 0])
    (run.folder / "classes.json").write_text(kept.model_dump_json())
    assert run.answered == kept
