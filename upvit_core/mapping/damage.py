"""The shape that the KL of a cut has: what each component's removal does adds up, until nothing is left to lose.

log KL = min(limit, log Σ_c exp d_c), both the sum and the minimum smooth. The damage d_c of a component grows with the
log-odds of the share of it that is removed, a power law at first, and with the share itself; that of merged heads with
how often they were halved. Least squares under a broad prior, so that a dozen cuts are enough.
"""

from __future__ import annotations

import numpy as np

SOFT = 0.004
"""Added to a share removed, so that none has infinite log-odds."""
NOISE = 0.1
"""Standard error of log KL around the curve that the prior is weighed against."""
NONE = -30.0
"""log damage of what is not touched at all."""


class Damage:
    """The fitted curve. features: (n, ≥ components + 1), shares removed and then head merging; logs: log KL (n,)."""

    def __init__(self, features: np.ndarray, logs: np.ndarray, components: int, start: np.ndarray | None = None):
        from scipy.optimize import least_squares

        self.components = components
        own = np.tile([-2.0, 0.3, 0.0], components), np.tile([2.0, 0.5, 1.0], components)
        middle = np.concatenate([own[0], [-2.0, 0.0, 0.0, np.max(logs), 0.0]])
        width = np.concatenate([own[1], [2.0, 0.7, 0.5, 0.3, 0.5]])

        def residuals(values: np.ndarray) -> np.ndarray:
            return np.concatenate([(self._at(features, values) - logs) / NOISE, (values - middle) / width])

        first = middle if start is None else start
        self.values = least_squares(residuals, first, max_nfev=200 if start is None else 4).x

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """log KL (n,) by the curve."""
        return self._at(features, self.values)

    def _at(self, features: np.ndarray, values: np.ndarray) -> np.ndarray:
        count = self.components
        removed, merged = np.clip(features[:, :count], 0, 0.99), features[:, count]
        level, power, bend = values[: 3 * count].reshape(count, 3).T
        odds = np.log((removed + SOFT) / (1 - removed + SOFT))  # (n, components)
        parts = level + np.exp(power) * odds + bend * (2 * removed - 1)
        head_level, head_power, sharpness, limit, corner = values[3 * count :]
        heads = np.where(merged > 0, head_level + np.exp(head_power) * (merged - 1), NONE)
        s, t = np.exp(sharpness), np.exp(corner)
        together = np.logaddexp.reduce(s * np.column_stack([parts, heads]), axis=1) / s
        return np.asarray(limit - np.logaddexp(0, t * (limit - together)) / t)
