"""What was measured, in figures, as tables and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from qcompiler.pictures import Bar, bars_svg, stacked

RATES = ("prefill_tokens_per_s", "decode_tokens_per_s")

Summaries = Mapping[str, Mapping[str, Any]]
"""For each engine, by name, what `summarise` returns."""


def summarise(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Combine what the processes of one engine printed: best and median of all their repeats."""
    contexts = {
        length: {
            rate: _best_and_median(
                [value for found in rounds for value in found["contexts"][length][rate]], best=max
            )
            for rate in RATES
        }
        for length in rounds[0]["contexts"]
    }
    return {
        "contexts": contexts,
        "first_token_s": _best_and_median([found["first_token_s"] for found in rounds], best=min),
        "peak_memory_bytes": max(found["peak_memory_bytes"] for found in rounds),
    }


def _best_and_median(values: list[float], *, best: Any) -> dict[str, float]:
    return {"best": best(values), "median": statistics.median(values)}


def table(summaries: Summaries, title: str) -> Table:
    """Show the engines one under the other."""
    drawn = Table(title=f"{title}; tokens/s and seconds: best (median)")
    drawn.add_column("engine")
    lengths = list(next(iter(summaries.values()))["contexts"])
    columns = [name for n in lengths for name in (f"prefill of {n}", f"decode after {n}")]
    for column in (*columns, "first token, s", "peak memory"):
        drawn.add_column(column, justify="right")
    for name, found in summaries.items():
        cells = []
        for length in lengths:
            prefill, decode = (found["contexts"][length][rate] for rate in RATES)
            cells.append(f"{prefill['best']:.0f} ({prefill['median']:.0f})")
            cells.append(f"{decode['best']:.1f} ({decode['median']:.1f})")
        first = found["first_token_s"]
        cells.append(f"{first['best']:.1f} ({first['median']:.1f})")
        cells.append(f"{found['peak_memory_bytes'] / 1e6:.0f} MB")
        drawn.add_row(name, *cells)
    return drawn


def picture(by_title: Mapping[str, Summaries]) -> str:
    """Draw the best rates as bars, two charts for each title and length of prompt."""
    charts = []
    for title, summaries in by_title.items():
        for length in next(iter(summaries.values()))["contexts"]:
            for rate, what in zip(RATES, ("prefill of", "decode after"), strict=True):
                bars = [
                    Bar(
                        label=name,
                        value=found["contexts"][length][rate]["best"],
                        kind=name.partition(" ")[0],
                    )
                    for name, found in summaries.items()
                ]
                said = f"{title}: {what} {length} tokens, tokens/s"
                charts.append(bars_svg(bars, title=said))
    return stacked(charts)
