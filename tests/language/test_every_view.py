"""A language model in every view: perplexity with its interval, means over tokens, sentences for what it lacks."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("transformers")

from pages.runs.live_charts import View, shown
from tests.support.tiny_text import CONTEXT, folder_of_weights, tiny_gpt2, tokens, write_letters_model
from tests.support.verbs import call
from upvit_core.cli import app
from upvit_core.data import open_images
from upvit_core.errors import DataError, UnsupportedModelError
from upvit_core.evaluation import evaluate, outcomes_of
from upvit_core.figures.evaluations import Points
from upvit_core.figures.runs import RunCurve, speed_table, step_table
from upvit_core.models.checkpoint import load_model
from upvit_core.planning.budget import Budget, best_plan
from upvit_core.planning.curves import predicted_loss
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import IMAGES, TEXT, task_of
from upvit_core.training.distillation import last_feature


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_letters_model(tmp_path_factory.mktemp("lm"))


def test_each_model_has_its_task() -> None:
    _, shape = tiny_gpt2()
    assert task_of(shape) is TEXT
    assert task_of(deit_shape("tiny")) is IMAGES
    assert (TEXT.nats, TEXT.batch_items, IMAGES.nats, IMAGES.batch_items) == (
        "nats a token", "blocks of text", "nats an image", "images",
    )  # fmt: skip


def test_the_interval_of_perplexity_is_that_of_the_mean_loss() -> None:
    logits = torch.randn(400, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(400) % 9
    result = outcomes_of(logits, labels).summary()
    losses = [-math.log(torch.softmax(row.double(), 0)[label]) for row, label in zip(logits, labels, strict=True)]
    mean, half = np.mean(losses), 1.959964 * np.std(losses, ddof=1) / 20
    assert TEXT.value(result) == pytest.approx(math.exp(mean))
    assert TEXT.interval(result) == pytest.approx((math.exp(mean - half), math.exp(mean + half)))


def test_means_are_over_tokens_and_budgets_are_met() -> None:
    _, shape = tiny_gpt2()
    rng = np.random.default_rng(0)
    values = {group.key: rng.random(group.width) for group in shape.groups}
    scores = ImportanceScores(values, "kl", "nats, summed over images", shape, images=5)
    best = best_plan(scores, Budget(params=2500))
    kept = {group.key: set(best.plan.kept(group.key)) for group in shape.groups}
    gone = sum(v for key, row in values.items() for i, v in enumerate(row) if i not in kept[key])
    assert best.params <= 2500
    assert predicted_loss(scores, best.plan) == pytest.approx(gone / (5 * CONTEXT))


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["export", "{lm}", "--out", "{out}/x.onnx"], "ONNX export is defined for models of images"),
        (["export", "{lm}", "--backbone", "--out", "{out}/b.onnx"], "A backbone without a head"),
        (["export", "{lm}", "--backbone", "--format", "timm", "--out", "{out}/b"], "A backbone without a head"),
        (["finetune", "{lm}", "--data", "{lm}/text.txt", "--epochs", "1", "--out", "{out}/runs"], "Fine-tuning"),
    ],
)
def test_what_only_images_have_is_refused_in_a_sentence(
    command: list[str], sentence: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"^{sentence}.*letters reads text"):
        call(*(part.format(lm=folder, out=tmp_path) for part in command))
    assert not list(tmp_path.iterdir())


def test_criteria_are_compared_by_perplexity(folder: Path) -> None:
    command = ["compare", str(folder), "--data", str(folder / "text.txt"), "--criteria", "fisher,l1", "--images", "8"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "Perplexity" in result.stdout
    assert "top-1" not in result.stdout.lower()
    rows = call(*command)["criteria"]
    assert {row["judged_by"] for row in rows} == {"perplexity"}
    assert all(row["interval"][0] < row["value"] < row["interval"][1] for row in rows)


def test_evaluate_gives_perplexity_alone(folder: Path) -> None:
    measured = call("evaluate", folder, "--data", folder / "text.txt")
    loaded = load_model(folder)
    text = open_images(str(folder / "text.txt"), "val", pretrained_cfg=loaded.pretrained_cfg)
    result = evaluate(loaded.model, text.batches(8))
    assert measured["perplexity"] == pytest.approx(result.perplexity)
    assert measured["tokens"] == result.images
    assert not {"top1", "images"} & set(measured)


def test_a_passage_is_the_text_before_the_token(folder: Path) -> None:
    loaded, whole = load_model(folder), (folder / "text.txt").read_text()
    text = open_images(str(folder / "text.txt"), "train", pretrained_cfg=loaded.pretrained_cfg)
    assert text.passage(2, 3).replace(" ", "") == whole[2 * CONTEXT : 2 * CONTEXT + 4].replace(" ", "")
    assert text.token(int(text.block(2)[4])).replace("␣", " ") == whole[2 * CONTEXT + 4]


def test_a_folder_without_its_tokenizer_says_so(folder: Path, tmp_path: Path) -> None:
    bare = folder_of_weights(tmp_path / "bare", ours=False)
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        open_images(str(folder / "text.txt"), "val", pretrained_cfg=load_model(bare).pretrained_cfg)


def test_the_last_feature_is_what_the_output_layer_reads() -> None:
    model, _ = tiny_gpt2()
    with torch.no_grad(), last_feature(model) as seen:
        logits = model(tokens(2))
    assert torch.allclose(seen[0] @ model.transformer.wte.weight.T, logits)


def test_charts_of_runs_name_perplexity_and_the_features_curve() -> None:
    rows = [
        {
            "phase": "surgery",
            "step": 0,
            "top1": 10.0,
            "perplexity": 30.0,
            "images_per_s": 9.0,
            "images": 70,
            "speedup": 1.5,
        },
        {"phase": "train", "step": 5, "loss": 3.0, "features": 0.5},
        {"phase": "final", "step": 9, "top1": 20.0, "perplexity": 20.0, "images_per_s": 9.0, "images": 70},
    ]
    points = Points(rows)
    curves = [RunCurve("a", "a", "#000000", points)]
    charts = shown([points], View())
    assert charts["quantity"] == "perplexity"
    assert "top-1" not in json.dumps(charts).lower()
    assert charts["titles"]["y"] == "perplexity (less is better) of 70 test tokens"
    assert speed_table(curves).table()["y"].tolist() == [30.0, 20.0]
    lines = step_table(curves, "features").table()
    assert (lines["x"].tolist(), lines["y"].tolist()) == ([5], [0.5])
