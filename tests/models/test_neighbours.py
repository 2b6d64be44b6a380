"""k-NN and the readout of models without a classifier against slow loops."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from tests.pruning.test_features import random_plan
from tests.support.small_run import CFG, write_images
from tests.support.tiny import tiny
from upvit_core.data import open_images
from upvit_core.errors import DataError
from upvit_core.evaluation import CLASSES, evaluate, readout_of, run_teacher
from upvit_core.models.neighbours import K, bank_of, votes
from upvit_core.models.output import Gaussian
from upvit_core.models.predict import predict
from upvit_core.pruning.surgery import prune


def slow_votes(bank: np.ndarray, labels: list[int], feature: np.ndarray, classes: int) -> list[float]:
    cosines = [float(b @ feature / math.sqrt(b @ b) / math.sqrt(feature @ feature)) for b in bank]
    near = sorted(range(len(bank)), key=lambda i: -cosines[i])[:20]
    weights = [sum(math.exp(cosines[i] / 0.07) for i in near if labels[i] == c) for c in range(classes)]
    return [weight / sum(weights) for weight in weights]


def test_votes_equal_a_slow_count() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, features = (torch.randn(n, 6, generator=generator).double() for n in (50, 9))
    labels = torch.randint(0, 4, (50,), generator=generator)
    shares = votes(bank, labels, features, 4)
    for row, feature in zip(shares.tolist(), features.numpy(), strict=True):
        assert row == pytest.approx(slow_votes(bank.numpy(), labels.tolist(), feature, 4), rel=1e-9)


def test_features_are_judged_by_neighbours_cosine_and_gaussian_kl(tmp_path: Path) -> None:
    root = str(write_images(tmp_path / "images"))
    train, test = (open_images(root, split, pretrained_cfg=CFG) for split in ("train", "val"))
    model, shape = tiny("features", torch.float32)

    student = prune(model, shape, random_plan("features", residual=0.25, ffn=0.5))
    readout = readout_of(shape, train, test)
    assert f"k = {K}" in readout.told
    assert readout_of(tiny()[1], train) is CLASSES
    whole = run_teacher(model, test.batches(7), readout=readout)
    assert whole.logits is not None
    result = evaluate(student, test.batches(7), teacher=model, teacher_logits=whole.logits, readout=readout)
    again = evaluate(student, test.batches(5), teacher=model, readout=readout)
    (bank, bank_labels), (ours, labels), (theirs, _) = (
        predict(student, train.batches(9)), predict(student, test.batches(9)), predict(model, test.batches(9)),
    )  # fmt: skip
    right = 0
    for feature, label in zip(ours.double().numpy(), labels.tolist(), strict=True):
        shares = slow_votes(bank.double().numpy(), bank_labels.tolist(), feature, len(test.class_names))
        right += int(np.argmax(shares)) == label
    assert result.top1 == again.top1 == pytest.approx(100 * right / len(labels))
    change = (ours - theirs).double().numpy()
    precision = np.linalg.inv(LedoitWolf().fit(theirs.double().numpy()).covariance_)
    expected = 0.5 * np.einsum("bi,ij,bj->", change, precision, change) / len(change)
    assert result.kl == pytest.approx(expected, rel=1e-4)
    a, b = ours.double().numpy(), theirs.double().numpy()
    cosine = np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)])
    assert result.cosine == again.cosine == pytest.approx(cosine, rel=1e-6)


def test_without_labels_there_is_no_top1_and_cosine_stays(tmp_path: Path) -> None:
    root = str(write_images(tmp_path / "images"))
    test = open_images(root, "val", pretrained_cfg=CFG)
    model, shape = tiny("features", torch.float32)
    result = evaluate(model, test.batches(7), teacher=model, readout=readout_of(shape, None, test))
    assert math.isnan(result.top1)
    assert math.isnan(result.top1_interval[0])
    assert result.cosine == pytest.approx(1)
    assert result.kl == pytest.approx(0, abs=1e-9)


def test_the_covariance_of_two_images_is_shrunk_and_one_has_none() -> None:
    features = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)).double()
    output = Gaussian.of(features)
    assert float(output.kl(output.reference(features), features + 0.1).mean()) < 100
    with pytest.raises(DataError, match="two images"):
        Gaussian.of(features[:1])


def test_classes_of_bank_and_images_are_matched_by_name(tmp_path: Path) -> None:
    root = str(write_images(tmp_path / "images"))
    train, test = (open_images(root, split, pretrained_cfg=CFG) for split in ("train", "val"))
    names = test.class_names
    other = replace(train, class_names=(names[1], names[0], "unknown", *names[3:]))
    bank = bank_of(other, test, 8)
    assert bank is not None
    assert bank.classes.tolist()[:3] == [1, 0, -1]
    assert bank_of(replace(train, class_names=("one",)), test, 8) is None
