"""The losses of a plan, class by class, beside an own count over the same images."""

import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from streamlit.testing.v1 import AppTest

from pages.services import evaluation
from tests.support.reading import PAPER, check, html_of, what_if_of
from upvit_core.data import open_images, proxy_indices
from upvit_core.models.checkpoint import load_model
from upvit_core.models.predict import predict
from upvit_core.paths import DEMO_FOLDER
from upvit_core.pruning.prune import cut
from upvit_core.records.scores import ImportanceScores

PAGE = "pages/tradeoff/page.py"
Run = Callable[..., AppTest]


def test_classes_and_confusions_are_those_of_the_two_models(jobs_at_once: None, page: Run) -> None:
    test = page(PAGE, "By class", **PAPER, residual="30", attention="30", ffn="30")
    check(test)
    live = load_model("demo")
    data = open_images("demo", "val", pretrained_cfg=live.pretrained_cfg)
    indices = proxy_indices(data, evaluation.EVALUATION_IMAGES, 0)
    thin = cut(live, what_if_of(test).plan(ImportanceScores.load(DEMO_FOLDER / "scores.safetensors")))
    (first, labels), (second, _) = (predict(each, data.batches(250, indices=indices)) for each in (live.model, thin))
    names, truth = data.class_names, labels.tolist()
    was, now = first.argmax(1).tolist(), second.argmax(1).tolist()
    lost = sum(w == y != n for w, n, y in zip(was, now, truth, strict=True))
    text = html_of(test)
    assert f"{lost:,} right answers become wrong" in text
    tables = [[re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", found)[1:]]
              for found in re.findall(r"<table.*?</table>", text)]  # fmt: skip
    classes, confusions = next(pair for pair in pairwise(tables) if len(pair[0][0]) == 5)
    for name, before, after, points, images in classes:
        mine = np.array([y == names.index(name) for y in truth])
        shares = [100 * float((np.array(given)[mine] == names.index(name)).mean()) for given in (was, now)]
        assert (before, after) == tuple(f"{share:.1f}\u00a0%" for share in shares)
        assert points == f"{shares[1] - shares[0]:+.1f}".replace("-", "−")
        assert images == str(mine.sum())
    assert len(classes) == 5
    pairs = Counter((w, n) for w, n, y in zip(was, now, truth, strict=True) if w != n != y)
    assert [(before, after, int(n)) for before, after, n in confusions] == [
        (names[a], names[b], n) for (a, b), n in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:5]
    ]


def test_it_is_not_shown_without_weights(page: Run, published: object) -> None:
    test = page(PAGE, open=f"published:{published}")
    assert "By class" not in [tab.label for tab in test.tabs]
    assert "By class" in [tab.label for tab in page(PAGE).tabs]
