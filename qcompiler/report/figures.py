"""Numbers as people read them, and where they lie between the least and the most."""

from __future__ import annotations

import math
from collections.abc import Iterable

WIDTH, HEIGHT = 500, 320
"""Of a picture: its letters can still be read on a phone, and are not huge on a desk."""

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def figure(value: float | None) -> str:
    """Write a number with three digits that count.

    >>> figure(0.0312345), figure(12.3456), figure(123456.0), figure(4.0), figure(None)
    ('0.0312', '12.3', '123,456', '4', '–')
    >>> figure(0.0000012)
    '1.2×10⁻⁶'
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{float(digits):g}{power_of_ten(int(power))}"
    return f"{value:.3g}"


def power_of_ten(power: int) -> str:
    """Write a factor.

    >>> power_of_ten(-3), power_of_ten(0)
    ('×10⁻³', '')
    """
    return f"×10{str(power).translate(_RAISED)}" if power else ""


def common_power(values: Iterable[float]) -> int:
    """Return the power of ten, a multiple of three, that brings the largest into [1, 1000).

    >>> common_power([0.002, 0.0000004]), common_power([12.0]), common_power([])
    (-3, 0, 0)
    """
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    return 3 * math.floor(math.log10(largest) / 3) if largest > 0 else 0


def heats(values: Iterable[float]) -> dict[float, float]:
    """Place each value between the least (0) and the most (1), by ratio where all are positive.

    >>> heats([1.0, 10.0, 100.0])
    {1.0: 0.0, 10.0: 0.5, 100.0: 1.0}
    """
    known = sorted({v for v in values if math.isfinite(v)})
    if not known:
        return {}
    ratio = known[0] > 0 and known[-1] / known[0] > 4
    low, high = (math.log(v) if ratio else v for v in (known[0], known[-1]))
    span = (high - low) or 1.0
    return {v: ((math.log(v) if ratio else v) - low) / span for v in known}


def duration(seconds: float) -> str:
    """Write a time.

    >>> duration(0.0042), duration(7.31), duration(190)
    ('4 ms', '7.3 s', '3 min 10 s')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def human_bytes(count: float) -> str:
    """Write a number of bytes for people.

    >>> human_bytes(512), human_bytes(3_400_000)
    ('512 B', '3.4 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
