"""A language model the whole way by its verbs: trained, scored, cut, distilled; perplexity against a slow count."""

import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from tests.support.tiny_text import CONTEXT, VOCABULARY, letters_tokenizer, write_letters_model, write_text
from tests.support.verbs import call
from upvit_core.data import open_images
from upvit_core.demo import gpt2
from upvit_core.errors import DataError
from upvit_core.models.checkpoint import load_model
from upvit_core.training.batches import TrainingBatches, batch_source

CFG = {"tokenizer": letters_tokenizer(), "context": CONTEXT}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "letters.txt")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_letters_model(tmp_path_factory.mktemp("teacher"))


def test_blocks_follow_one_another_and_labels_are_one_further(text: Path) -> None:
    train, test = (
        open_images(str(text), split, pretrained_cfg=CFG, num_classes=VOCABULARY) for split in ("train", "val")
    )
    letters = text.read_text()
    assert (len(train), len(test)) == ((2850 - 1) // CONTEXT, (150 - 1) // CONTEXT)
    x, y = next(train.batches(3))
    read = [train.class_names.index(letter) for letter in letters[: 3 * CONTEXT + 1]]
    assert x.flatten().tolist() == read[:-1]
    assert y.flatten().tolist() == read[1:]
    first, _ = next(test.batches(1))
    assert "".join(test.class_names[i] for i in first[0]) == letters[2850 : 2850 + CONTEXT]


def test_training_blocks_begin_elsewhere_each_epoch_and_again_alike(text: Path) -> None:
    train = open_images(str(text), "train", pretrained_cfg=CFG)
    batches = TrainingBatches(batch_source(train, {}, seed=0), batch_size=8, seed=0)
    first = batches.steps_per_epoch
    one, again = (list(batches.steps(first, 2 * first)) for _ in range(2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, again, strict=True))
    rest = list(batches.steps(first + 2, 2 * first))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one[2:], rest, strict=True))
    letters = "".join(train.class_names[i] for i in train.tokens)
    starts = {letters.find("".join(train.class_names[i] for i in x)) % CONTEXT for x in one[0][0]}
    assert len(starts - {-1 % CONTEXT}) >= 1
    for x, y in one:
        assert torch.equal(x[:, 1:], y[:, :-1])


def test_what_is_no_text_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("abc")
    (tmp_path / "empty.txt").write_text(" ")
    for spec, words in (
        (tmp_path / "short.txt", "too few"),
        (tmp_path / "none.txt", "not readable"),
        (tmp_path / "empty.txt", "holds no text"),
    ):
        with pytest.raises(DataError, match=words):
            open_images(str(spec), "train", pretrained_cfg=CFG)


def slow_perplexity(folder: Path, text: Path) -> float:
    model = load_model(folder).model
    test = open_images(str(text), "val", pretrained_cfg=CFG)
    nats, count = 0.0, 0
    for index in range(len(test)):
        block = [int(i) for i in test.block(index)]
        for place in range(CONTEXT):
            with torch.no_grad():
                logits = model(torch.tensor([block[: place + 1]]))[0, -1].double()
            nats -= float(logits.log_softmax(0)[block[place + 1]])
            count += 1
    return math.exp(nats / count)


def test_the_whole_way_by_verbs(text: Path, teacher: Path, tmp_path: Path) -> None:
    measured = call("evaluate", teacher, "--data", text)
    assert measured["perplexity"] == pytest.approx(slow_perplexity(teacher, text), rel=1e-4)
    assert measured["tokens"] == 147
    scores, plan, thin = tmp_path / "s.safetensors", tmp_path / "plan.json", tmp_path / "thin"
    for criterion in ("l2", "fisher", "kl"):
        call("score", teacher, "--data", text, "--criterion", criterion, "--images", 20, "--out", scores)
    call("plan", scores, "--residual", 0.25, "--attention", 0.25, "--ffn", 0.5, "--heads", 2, "--out", plan)
    assert call("prune", teacher, plan, "--out", thin)["params"] < call("profile", teacher)["params"]
    done = call(
        "distill", "--teacher", teacher, "--student", thin, "--data", text, "--epochs", 2, "--preset", "language",
        "--device", "cpu", "--out", tmp_path / "runs",
    )  # fmt: skip
    assert done["state"] == "done"
    model = Path(done["run"]) / "model"
    assert done["perplexity"] == pytest.approx(slow_perplexity(model, text), rel=1e-4)
    assert done["perplexity"] < measured["perplexity"], "two epochs on a text with habits"
    rows = [json.loads(line) for line in (model.parent / "metrics.jsonl").read_text().splitlines()]
    assert all("perplexity" in row for row in rows if row["phase"] != "train")
    assert call("runs", "--out", tmp_path / "runs")["runs"][0]["perplexity"] == pytest.approx(done["perplexity"])


def test_a_small_model_is_trained_with_its_own_tokenizer(tmp_path: Path) -> None:
    source = tmp_path / "source.txt"
    source.write_text("In the beginning was the word, and the word was long.\n" * 200)
    measured = gpt2.train_language(tmp_path / "lm", source, epochs=3, width=16, depth=1)
    opened = load_model(tmp_path / "lm")
    again = call("evaluate", tmp_path / "lm", "--data", measured["text"])
    assert again["perplexity"] == pytest.approx(measured["perplexity"], rel=1e-4)
    assert opened.shape.num_classes <= gpt2.VOCABULARY
