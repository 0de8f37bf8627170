"""`qcompiler bench`: how fast an artifact runs on this machine, and how far from its limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import qcompiler
from qcompiler.commands.output import print_json, print_table, say
from qcompiler.commands.picture import check_picture, write_picture
from qcompiler.core.artifact import read_manifest
from qcompiler.core.errors import UsageError
from qcompiler.report.figures import human_bytes

if TYPE_CHECKING:
    from qcompiler.benchmark import BenchResult
    from qcompiler.kernel_table import FunctionTime, KindTime

_NO_COSTS = (
    "the artifact does not say what its kernels take, since an earlier version compiled it; "
    "compile the model again to see how far they are from the machine's limits"
)


def bench(
    artifact: Path,
    *,
    prompt_tokens: int,
    generate_tokens: int,
    threads: int | None,
    repeats: int,
    roofline: Path | None,
    as_json: bool,
) -> None:
    """Print tokens/s, time to the first token, memory and memory bandwidth, then every kind."""
    if roofline is not None:
        check_picture("--roofline", roofline)
        if not read_manifest(artifact).limits:
            raise UsageError(f"--roofline cannot be drawn: {_NO_COSTS}")
    found = qcompiler.bench(
        artifact,
        prompt_tokens=prompt_tokens,
        generate_tokens=generate_tokens,
        threads=threads,
        repeats=repeats,
    )
    if roofline is not None:
        _draw(found, roofline)
    if as_json:
        print_json(as_object(found))
        return
    rows = [
        (f"prefill of {prompt_tokens} tokens", f"{found.prefill_tokens_per_s:.0f} tokens/s"),
        (f"decode of {generate_tokens} tokens", f"{found.decode_tokens_per_s:.1f} tokens/s"),
        ("time to the first token", f"{found.time_to_first_token_s * 1000:.0f} ms"),
        ("peak memory", human_bytes(found.peak_memory_bytes)),
        ("weights", human_bytes(found.weight_bytes)),
        ("read while decoding", f"{human_bytes(found.stream_bytes_per_s)}/s"),
    ]
    if found.limits is not None:
        rows += [
            ("limit: bytes read in order", f"{human_bytes(found.limits.bytes)}/s"),
            ("limit: operations on bytes", f"{_operations(found.limits.int8)}/s"),
            ("limit: operations on floats", f"{_operations(found.limits.float32)}/s"),
        ]
    print_table(("measure", "value"), rows, numbers=("value",))
    for function in found.functions:
        print()
        _print_function(function)
    if found.limits is None:
        say(_NO_COSTS)


def _print_function(function: FunctionTime) -> None:
    tokens = f"{function.tokens} token{'' if function.tokens == 1 else 's'}"
    title = f"{function.name} of {tokens}, {function.context} in the context"
    columns = (title, "calls", "µs", "bytes", "operations", "of the limit", "µs above it")
    rows = [_row(kind) for kind in function.kinds]
    rows.append(("outside of kernels", "", f"{function.outside_seconds * 1e6:.1f}", *[""] * 4))
    print_table(columns, [*rows, _row(function.total)], numbers=columns[1:])


def _row(kind: KindTime) -> tuple[str, ...]:
    return (
        kind.kind,
        str(kind.calls),
        f"{kind.seconds * 1e6:.1f}",
        human_bytes(kind.bytes),
        _operations(kind.operations),
        f"{kind.limit_share:.0%}",
        f"{(kind.seconds - kind.limit_seconds) * 1e6:.1f}",
    )


def _operations(count: float) -> str:
    """Write a number of operations.

    >>> _operations(512), _operations(3_400_000)
    ('512', '3.4 M')
    """
    for unit in ("", " k", " M", " G"):
        if count < 1000:
            return f"{count:.0f}" if not unit else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.1f} T"


def as_object(found: BenchResult) -> dict[str, object]:
    """Return everything that was measured, as JSON can say it."""
    limits = found.limits
    return {
        "prefill_tokens_per_s": found.prefill_tokens_per_s,
        "decode_tokens_per_s": found.decode_tokens_per_s,
        "time_to_first_token_s": found.time_to_first_token_s,
        "peak_memory_bytes": found.peak_memory_bytes,
        "weight_bytes": found.weight_bytes,
        "stream_bytes_per_s": found.stream_bytes_per_s,
        "limits": limits
        and {
            "bytes_per_s": limits.bytes,
            "int8_ops_per_s": limits.int8,
            "float32_ops_per_s": limits.float32,
        },
        "functions": [
            {
                "name": function.name,
                "tokens": function.tokens,
                "context": function.context,
                "kinds": [_kind(kind) for kind in function.kinds],
                "outside_s": function.outside_seconds,
                "total": _kind(function.total),
            }
            for function in found.functions
        ],
    }


def _kind(kind: KindTime) -> dict[str, object]:
    return {
        "kind": kind.kind,
        "calls": kind.calls,
        "seconds": kind.seconds,
        "bytes": kind.bytes,
        "operations": kind.operations,
        "limit_seconds": kind.limit_seconds,
        "limit_share": kind.limit_share,
    }


def _draw(found: BenchResult, picture: Path) -> None:
    """Draw the kinds that read memory below the machine's limits."""
    from qcompiler.pictures import Point, roofline_svg

    assert found.limits is not None
    series = {
        function.name: [
            Point(x=kind.operations / kind.bytes, y=kind.operations / kind.seconds, label=kind.kind)
            for kind in function.kinds
            if kind.bytes and kind.operations
        ]
        for function in found.functions
    }
    drawing = roofline_svg(
        series,
        bytes_per_s=found.limits.bytes,
        peaks={"bytes": found.limits.int8, "floats": found.limits.float32},
    )
    write_picture(drawing, picture)
