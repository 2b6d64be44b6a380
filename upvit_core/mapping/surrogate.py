"""Estimates from measured cuts: the KL and top-1, or perplexity, of any other cut, each with a band of 80 %.

Two Gaussian processes (scikit-learn's, Matérn 5/2) of log KL are averaged, each by how well it foretells every measured
cut from the others: one on all features, one on shares and the curve of `damage`, which is nearly all that matters
where damages add up. A third gives top-1 (its log-odds; of a text the cross-entropy) from the shares and the KL. Bands
are widened or narrowed until they hold 80 % of the cuts left out, one at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from upvit_core.errors import MapError
from upvit_core.mapping.damage import Damage
from upvit_core.mapping.points import features
from upvit_core.records.map import CutPoint, LeaveOneOut, Map
from upvit_core.records.task import task_of

FEWEST = 8
"""Measured cuts before anything is estimated."""
LEAST_KL = 1e-6
NORMAL90 = 1.2816
SHARE = 0.8
NEAR, FAR = 0.7, 0.05
"""The difference of log KL within which cuts count for one another, and the weight of all others."""
PRIOR_CUTS = 3
"""Bands are first trusted as they are, with the weight of so many cuts."""
KL_NOISE, VALUE_NOISE = 3e-3, 2e-2
"""The least share of the variance that is taken for noise: plans of almost the same widths keep other channels."""
STEP = 0.05
EDGE = 0.002
"""Added to shares of right answers, so that log-odds stay finite."""
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Estimates:
    """Of n cuts (n,): KL in nats a sample and the task's value, with their 80 % bands. `known`: False where no cut that
    was measured lacks as many half-blocks, so that nothing can be said."""

    kl: np.ndarray
    kl_low: np.ndarray
    kl_high: np.ndarray
    value: np.ndarray
    value_low: np.ndarray
    value_high: np.ndarray
    known: np.ndarray


class Process:
    """A Gaussian process on standardised features (n, f), of which those that never vary are left out."""

    def __init__(self, features: np.ndarray, targets: np.ndarray, least_noise: float):
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        self._targets, self._mean, spread = targets, features.mean(0), features.std(0)
        self._used = spread > 1e-9
        self._spread = np.where(self._used, spread, 1.0)
        self._features = self._scaled(features)
        lengths = Matern(np.full(self._features.shape[1], 6.0), (0.5, 50.0), nu=2.5)
        kernel = ConstantKernel(30.0, (0.1, 1e4)) * lengths + WhiteKernel(3 * least_noise, (least_noise, 0.3))
        self._fitted = self._fit(GaussianProcessRegressor, kernel, self._features, targets, "fmin_l_bfgs_b")

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        return ((features - self._mean) / self._spread)[:, self._used]

    @staticmethod
    def _fit(kind: Any, kernel: Any, features: np.ndarray, targets: np.ndarray, optimizer: str | None) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a length at its bound means that a feature says nothing
            return kind(kernel, normalize_y=True, optimizer=optimizer).fit(features, targets)

    def at(self, features: np.ndarray) -> Pair:
        """Mean and standard deviation, (n,) each."""
        mean, deviation = self._fitted.predict(self._scaled(features), return_std=True)
        return mean, deviation

    def without(self, row: int, at: np.ndarray, others: np.ndarray | None = None) -> tuple[float, float]:
        """Mean and standard deviation at features (f,) from all rows but one, with the same kernel.

        others: features (n, f) in place of those that it was fitted to.
        """
        rest = np.arange(len(self._targets)) != row
        X = self._features if others is None else self._scaled(others)
        again = self._fit(type(self._fitted), self._fitted.kernel_, X[rest], self._targets[rest], None)
        mean, deviation = again.predict(self._scaled(at[None]), return_std=True)
        return float(mean[0]), float(deviation[0])


class LogKL:
    """log KL by two processes; `left_out` holds mean and deviation of every cut from all others, (n,) each."""

    def __init__(self, X: np.ndarray, logs: np.ndarray, components: int):
        self._columns, self._components = components + 2, components
        self._damage = Damage(X, logs, components)
        self._all, self._curved = Process(X, logs, KL_NOISE), Process(self._with_curve(X, self._damage), logs, KL_NOISE)
        rest = [np.arange(len(X)) != row for row in range(len(X))]
        first = [self._all.without(row, X[row]) for row in range(len(X))]
        second = []
        for row, others in enumerate(rest):
            damage = Damage(X[others], logs[others], components, self._damage.values)
            curved = self._with_curve(X, damage)
            second.append(self._curved.without(row, curved[row], curved))
        alone = np.array([first, second])  # (2, n, 2)
        trust = (np.abs(alone[..., 0] - logs).mean(1) + 1e-6) ** -3.0
        self._weights = trust / trust.sum()
        self.left_out = self._mixed(alone[..., 0], alone[..., 1])
        self._calibration = Calibration.of(logs, *self.left_out, self.left_out[0])

    def _with_curve(self, X: np.ndarray, damage: Damage) -> np.ndarray:
        return np.column_stack([X[:, : self._columns], damage(X)])

    def _mixed(self, means: np.ndarray, deviations: np.ndarray) -> Pair:
        mean = self._weights @ means
        return mean, np.sqrt(self._weights @ (deviations**2 + (means - mean) ** 2))

    def at(self, X: np.ndarray) -> Pair:
        both = self._all.at(X), self._curved.at(self._with_curve(X, self._damage))
        mean, deviation = self._mixed(*(np.array(part) for part in zip(*both, strict=True)))
        return mean, deviation * self._calibration.at(mean)


class Surrogate:
    """Estimates of any cut from the measured ones of a map. Raises MapError where they are fewer than FEWEST."""

    def __init__(self, record: Map):
        cuts = [cut for cut in record.cuts if cut.kl > LEAST_KL]
        if len(cuts) < FEWEST:
            raise MapError(f"The map has {len(cuts)} measured cuts, and estimates need {FEWEST}; measure more.")
        self.record, self.task = record, task_of(record.shape)
        self._components = len(record.shape.components)
        X = features(cuts, record.shape)
        logs = np.log([cut.kl for cut in cuts])
        self._values = np.array([self.task.value(cut) for cut in cuts])
        links = self._link(self._values)
        self._logs, self._kl = logs, LogKL(X, logs, self._components)
        self._value = Process(self._beside(X, logs), links, VALUE_NOISE)
        self._gone = max(_gone(cut, record) for cut in cuts)
        left, spread = self._kl.left_out
        beside = self._beside(X, left)
        at = [self._value.without(row, beside[row]) for row in range(len(X))]
        self._left_out = np.array([mean for mean, _ in at])
        widened = self._widened(X, left, spread, np.array([deviation for _, deviation in at]))
        self._calibration = Calibration.of(links, self._left_out, widened, left)

    @property
    def errors(self) -> LeaveOneOut:
        """Errors of the estimate of each measured cut from all others."""
        kl = np.abs(np.exp(self._kl.left_out[0] - self._logs) - 1)
        value = np.abs(self._unlink(self._left_out) - self._values)
        value = value if self.task.in_percent else value / self._values
        return LeaveOneOut(
            cuts=len(self.record.cuts),
            kl=float(np.median(kl)),
            kl_95=float(np.quantile(kl, 0.95)),
            value=float(np.median(value)),
            value_90=float(np.quantile(value, 0.9)),
        )

    def estimate(self, points: Sequence[CutPoint]) -> Estimates:
        """KL and value of cuts with their bands; of a cut that removes nothing, the whole model's."""
        X = features(points, self.record.shape)
        logs, spread = self._kl.at(X)
        links, deviation = self._value.at(self._beside(X, logs))
        half = NORMAL90 * self._calibration.at(logs) * self._widened(X, logs, spread, deviation)
        kl = np.exp(logs + np.outer([0, -1, 1], NORMAL90 * spread))
        ends = self._unlink(links + np.outer([0, -1, 1], half))
        whole = ~(X[:, : self._components + 1] > 0).any(1)
        kl[:, whole], ends[:, whole] = 0.0, self.task.value(self.record.whole)
        known = np.array([_gone(point, self.record) <= self._gone for point in points])
        (middle, low, high), (value, value_low, value_high) = kl, ends
        return Estimates(
            middle, low, high, value, np.minimum(value_low, value_high), np.maximum(value_low, value_high), known
        )

    def uncertainty(self, points: Sequence[CutPoint]) -> np.ndarray:
        """Standard deviation (n,) of log KL."""
        return self._kl.at(features(points, self.record.shape))[1]

    def _beside(self, X: np.ndarray, logs: np.ndarray) -> np.ndarray:
        """Shares removed, head merging and log KL."""
        return np.column_stack([X[:, : self._components + 1], logs])

    def _widened(self, X: np.ndarray, logs: np.ndarray, spread: np.ndarray, deviation: np.ndarray) -> np.ndarray:
        """The deviation of the value with that of the KL it is estimated from."""
        slope = (self._value.at(self._beside(X, logs + STEP))[0] - self._value.at(self._beside(X, logs))[0]) / STEP
        return np.sqrt(deviation**2 + (slope * spread) ** 2)

    def _link(self, values: np.ndarray) -> np.ndarray:
        share = values / 100
        return np.log((share + EDGE) / (1 + EDGE - share)) if self.task.in_percent else np.log(values)

    def _unlink(self, links: np.ndarray) -> np.ndarray:
        if not self.task.in_percent:
            return np.exp(np.minimum(links, 700.0))
        odds = np.exp(-links)
        return np.clip(100 * (1 + EDGE - EDGE * odds) / (1 + odds), 0, 100)


@dataclass(frozen=True)
class Calibration:
    """Factors on deviations with which bands hold SHARE of what was left out, more by cuts of a similar KL.

    ratios: of what was left out (n,), the error over the half-width of its band; logs: its log KL.
    """

    ratios: np.ndarray
    logs: np.ndarray

    @classmethod
    def of(cls, truth: np.ndarray, mean: np.ndarray, deviation: np.ndarray, logs: np.ndarray) -> Calibration:
        return cls(np.abs(truth - mean) / (NORMAL90 * deviation), logs)

    def at(self, logs: np.ndarray) -> np.ndarray:
        """The factor (m,) at each log KL."""
        order = np.argsort(self.ratios)
        near = np.exp(-0.5 * ((logs[:, None] - self.logs[order]) / NEAR) ** 2) + FAR  # (m, n)
        share = np.cumsum(near, 1) / near.sum(1, keepdims=True)
        found = self.ratios[order][np.argmax(share >= SHARE, axis=1)]
        weight = near.sum(1)
        return (weight * found + PRIOR_CUTS) / (weight + PRIOR_CUTS)


def _gone(point: CutPoint, record: Map) -> int:
    """Half-blocks that are gone."""
    return sum(group.key not in point.widths for group in record.shape.groups if group.component != "residual")
