"""`qcompiler evaluate`: how well a model or an artifact predicts texts."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import qcompiler
from qcompiler.commands.calibration import CalibrationOptions
from qcompiler.commands.output import print_json, print_table
from qcompiler.commands.progress import watch
from qcompiler.core.errors import UsageError
from qcompiler.packaged import check_found
from qcompiler.presets import find_pipeline

if TYPE_CHECKING:
    from qcompiler.evaluation import Comparison, Evaluation, Interval


def evaluate(
    model: str,
    *,
    texts: tuple[str, ...],
    reference: str | None,
    pipeline: str | None,
    reference_pipeline: str | None,
    tokens: int | None,
    window: int | None,
    calibration: CalibrationOptions,
    as_json: bool,
    intervals: bool,
    quiet: bool,
) -> None:
    """Print likelihood, perplexity and, given a reference, the distance to it."""
    # What is wrong with the request should show before seconds are spent on loading torch and TVM.
    for name in texts:
        if texts.count(name) > 1:
            raise UsageError(f"--text {name} is given twice; give each text once")
    contents = {name: read_text(name) for name in texts}
    for model_name in (model, reference):
        if model_name is not None:
            check_found(model_name)
    pipelines = [name for name in (pipeline, reference_pipeline) if name is not None]
    for name in pipelines:
        find_pipeline(name)
    calibration.check()
    if pipelines or calibration != CalibrationOptions():
        from qcompiler.planning import plan_request

        plans = [plan_request(name)[0] for name in pipelines]
        calibration.check_against([step for plan in plans for step in plan.steps])
    with watch(quiet=quiet) as progress:
        found = qcompiler.evaluate(
            model,
            text=contents if len(contents) > 1 else contents[texts[0]],
            reference=reference,
            pipeline=pipeline,
            reference_pipeline=reference_pipeline,
            tokens=tokens,
            window=window,
            progress=progress,
            **calibration.keywords(),
        )
    if as_json:
        print_json(as_object(found, intervals=intervals or len(contents) > 1))
    elif found.texts:
        print_texts(found)
    else:
        print_one(found)


def as_object(found: Evaluation, *, intervals: bool) -> dict[str, object]:
    """Return what `--json` prints: five keys, and with `intervals` all that is known."""
    result: dict[str, object] = {
        "nll": found.nll,
        "perplexity": found.perplexity,
        "tokens": found.tokens,
        "kl": found.kl,
        "top1_agreement": found.top1_agreement,
    }
    if not intervals:
        return result
    result |= {
        "nll_error": found.nll_error,
        "nll_interval": list(found.nll_interval),
        "perplexity_interval": list(found.perplexity_interval),
        "blocks": found.blocks,
        "comparison": None,
    }
    if (comparison := found.comparison) is not None:
        result["comparison"] = {
            "nll_difference": comparison.nll_difference,
            "nll_difference_error": comparison.nll_difference_error,
            "interval": list(comparison.interval),
            "verdict": comparison.verdict,
            "reference_nll": comparison.reference_nll,
            "reference_perplexity": comparison.reference_perplexity,
            "kl_interval": list(comparison.kl_interval),
        }
    if found.texts:
        result["texts"] = {
            name: as_object(each, intervals=True) for name, each in found.texts.items()
        }
    return result


def print_one(found: Evaluation) -> None:
    """Print a line for each figure of one text."""
    rows = [
        (
            *("negative log-likelihood", f"{found.nll:.4f}", between(found.nll_interval, 4)),
            f"nats per token, ± {found.nll_error:.4f}",
        ),
        ("perplexity", f"{found.perplexity:.3f}", between(found.perplexity_interval, 3), ""),
        ("tokens", f"{found.tokens}", "", f"{found.blocks} blocks"),
    ]
    if found.kl is not None:
        interval = "" if found.comparison is None else between(found.comparison.kl_interval, 5)
        name = "KL divergence from the reference"
        rows.append((name, f"{found.kl:.5f}", interval, "nats per token"))
    if found.top1_agreement is not None:
        rows.append(("same first choice as the reference", f"{found.top1_agreement:.1%}", "", ""))
    if (comparison := found.comparison) is not None:
        rows.append(
            (
                "rise over the reference",
                f"{comparison.nll_difference:+.4f}",
                between(comparison.interval, 4, signed=True),
                f"nats per token, {comparison.verdict}",
            )
        )
        rows.append(
            ("the reference's perplexity", f"{comparison.reference_perplexity:.3f}", "", "")
        )
    print_table(("measure", "value", "95 % interval", ""), rows, numbers=("value",))


def print_texts(found: Evaluation) -> None:
    """Print a line for each text and one for all of them."""
    columns = ["text", "tokens", "nll", "perplexity", "95 % interval"]
    if found.comparison is not None:
        columns += ["KL", "same first", "rise", "95 % interval", "is"]
    rows = []
    for name, one in [*found.texts.items(), ("all", found)]:
        row = [name, f"{one.tokens}", f"{one.nll:.4f}", f"{one.perplexity:.3f}"]
        row.append(between(one.perplexity_interval, 3))
        if one.comparison is not None:
            row += comparison_cells(one, one.comparison)
        rows.append(row)
    numbers = ("tokens", "nll", "perplexity", "KL", "same first", "rise")
    print_table(columns, rows, numbers=numbers)


def comparison_cells(one: Evaluation, comparison: Comparison) -> list[str]:
    """Write a comparison in a row."""
    return [
        f"{one.kl:.5f}",
        f"{one.top1_agreement:.1%}",
        f"{comparison.nll_difference:+.4f}",
        between(comparison.interval, 4, signed=True),
        comparison.verdict,
    ]


def between(interval: Interval, digits: int, *, signed: bool = False) -> str:
    """Write an interval; none can be given of a text that is one block.

    >>> between((1.25, 1.5), 2), between((-0.5, 0.25), 2, signed=True)
    ('1.25 … 1.50', '-0.50 … +0.25')
    """
    if not all(map(math.isfinite, interval)):
        return "too little text"
    low, high = (f"{bound:{'+' if signed else ''}.{digits}f}" for bound in interval)
    return f"{low} … {high}"


def read_text(name: str) -> str:
    """Return what a UTF-8 text file holds, or standard input for `-`."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"--text {name}: cannot read it: {error.strerror}") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"--text {name}: it is not UTF-8 text") from error
    if not text.strip():
        raise UsageError(f"--text {name}: there is no text in it")
    return text
