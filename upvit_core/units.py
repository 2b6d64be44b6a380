"""Numbers and names as people read them."""

import math

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
