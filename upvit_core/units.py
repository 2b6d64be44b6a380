"""Numbers and names as people read them."""

import math
from statistics import NormalDist

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(number: float, digits: int = 2) -> str:
    """`22.05 M`, `4.60 G`, `812`."""
    for size, unit in UNITS:
        if abs(number) >= size:
            return f"{number / size:.{digits}f} {unit}"
    return f"{number:.0f}" if number == int(number) else f"{number:.{digits}f}"


def figure(number: float, digits: int = 3) -> str:
    """`4,590`, `12.3`, `0.00012`: significant digits, and no powers of ten below a million."""
    return f"{number:,.0f}" if 10**digits <= abs(number) < 1e6 else f"{number:.{digits}g}"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def share(part: float) -> str:
    """`23 %`, `0.31 %`: two significant digits."""
    return f"{100 * part:.{0 if part >= 0.0995 else 2}{'f' if part >= 0.0995 else 'g'}} %"


def times(factor: float) -> str:
    """`3.93×`, with one digit from 10 on."""
    return f"{factor:.2f}×" if factor < 10 else f"{factor:.1f}×"


def duration(seconds: float | None) -> str:
    """`40 s`, `12 min`, `3.5 h`; empty for an unknown time."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a binomial share, in [0, 1] (Wilson, JASA 1927)."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"{successes} successes of {trials} trials is no share; give 0 <= successes <= trials, trials >= 1."
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)
