"""`qcompiler compare`: what several pipelines make of one model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import qcompiler
from qcompiler.commands.calibration import CalibrationOptions
from qcompiler.commands.evaluate import as_object, between
from qcompiler.commands.output import print_json, print_table
from qcompiler.commands.picture import check_picture, write_picture
from qcompiler.commands.progress import watch
from qcompiler.core.text_file import read_text
from qcompiler.packaged import check_found
from qcompiler.presets import find_pipeline
from qcompiler.report.figures import duration, human_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qcompiler.comparison import Contender


def compare(
    model: str,
    *,
    pipelines: tuple[str, ...],
    text: Path,
    output: Path | None,
    tokens: int | None,
    temperatures: bool,
    calibration: CalibrationOptions,
    picture: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print a row for each pipeline, and what temperatures change."""
    # What is wrong with the request should show before seconds are spent on loading torch and TVM.
    content = read_text(text)
    check_found(model)
    for pipeline in pipelines:
        find_pipeline(pipeline)
    if picture is not None:
        check_picture("--picture", picture)
    calibration.check()
    if pipelines:
        from qcompiler.planning import plan_request

        plans = [plan_request(name)[0] for name in pipelines]
        calibration.check_against([step for plan in plans for step in plan.steps])
    with watch(quiet=quiet) as progress:
        found = qcompiler.compare(
            model,
            pipelines,
            text=content,
            output=output,
            tokens=tokens,
            calibration=calibration.files,
            samples=calibration.samples,
            sequence_length=calibration.sequence_length,
            seed=calibration.seed,
            progress=None if quiet else progress,
            **({} if temperatures else {"temperatures": ()}),
        )
    if picture is not None:
        write_picture(draw(found), picture)
    if as_json:
        print_json({"pipelines": [_as_object(one) for one in found]})
        return
    _print_pipelines(found)
    if temperatures:
        print()
        _print_temperatures(found)


def draw(found: Sequence[Contender]) -> str:
    """Draw the divergence, the speed and the size of each pipeline as bars."""
    from qcompiler.pictures import Bar, bars_svg, stacked

    charts = (
        (
            "divergence from float, nats per token",
            [(one.name, one.evaluation.kl) for one in found if one.evaluation.kl is not None],
        ),
        ("decoding, tokens/s", [(one.name, one.speed.decode_tokens_per_s) for one in found]),
        ("weights, MB", [(one.name, one.bytes / 1e6) for one in found]),
    )
    return stacked(
        [
            bars_svg([Bar(label=name, value=value) for name, value in rows], title=title)
            for title, rows in charts
        ]
    )


def _as_object(one: Contender) -> dict[str, object]:
    return {
        "name": one.name,
        "weight_bytes": one.bytes,
        "bits_per_weight": one.bits_per_weight,
        "evaluation": as_object(one.evaluation, intervals=True),
        "prefill_tokens_per_s": one.speed.prefill_tokens_per_s,
        "decode_tokens_per_s": one.speed.decode_tokens_per_s,
        "peak_memory_bytes": one.speed.peak_memory_bytes,
        "compile_seconds": one.compile_seconds,
        "compile_memory_bytes": one.compile_memory_bytes,
        "temperatures": [asdict(each) for each in one.temperatures],
    }


def _print_pipelines(found: Sequence[Contender]) -> None:
    columns = ["pipeline", "weights", "bits", "perplexity", "95 % interval", "KL", "same first"]
    columns += ["rise", "is", "prefill/s", "decode/s", "memory", "compiled in", "with"]
    rows = []
    for one in found:
        scores, comparison = one.evaluation, one.evaluation.comparison
        beside = ("", "", "", "")
        if comparison is not None:
            beside = (
                f"{scores.kl:.5f}",
                f"{scores.top1_agreement:.1%}",
                f"{comparison.nll_difference:+.4f}",
                comparison.verdict,
            )
        rows.append(
            (
                one.name,
                human_bytes(one.bytes),
                f"{one.bits_per_weight:.2f}",
                f"{scores.perplexity:.3f}",
                between(scores.perplexity_interval, 2),
                *beside,
                f"{one.speed.prefill_tokens_per_s:.0f}",
                f"{one.speed.decode_tokens_per_s:.0f}",
                human_bytes(one.speed.peak_memory_bytes),
                duration(one.compile_seconds),
                human_bytes(one.compile_memory_bytes),
            )
        )
    print_table(columns, rows, numbers=[c for c in columns if c not in ("pipeline", "is")])


def _print_temperatures(found: Sequence[Contender]) -> None:
    """Print a line for each temperature: of every pipeline the divergence, and its texts."""
    columns = ["temperature"]
    for one in found:
        if one.evaluation.kl is not None:
            columns.append(f"KL {one.name}")
        columns += [f"repeated {one.name}", f"distinct {one.name}"]
    rows = []
    for each in zip(*(one.temperatures for one in found), strict=True):
        row = [f"{each[0].temperature:g}"]
        for at in each:
            row += [] if at.kl is None else [f"{at.kl:.4f}"]
            row += [f"{at.repeated:.1%}", f"{at.distinct:.1%}"]
        rows.append(row)
    print_table(columns, rows, numbers=columns)
