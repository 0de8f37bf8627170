"""`qcompiler bench`: how fast an artifact runs on this machine."""

from __future__ import annotations

from pathlib import Path

import qcompiler
from qcompiler.commands.output import print_json, print_table
from qcompiler.report.figures import human_bytes


def bench(
    artifact: Path,
    *,
    prompt_tokens: int,
    generate_tokens: int,
    threads: int | None,
    repeats: int,
    as_json: bool,
) -> None:
    """Print tokens/s, time to the first token, memory and memory bandwidth."""
    found = qcompiler.bench(
        artifact,
        prompt_tokens=prompt_tokens,
        generate_tokens=generate_tokens,
        threads=threads,
        repeats=repeats,
    )
    if as_json:
        print_json(
            {
                "prefill_tokens_per_s": found.prefill_tokens_per_s,
                "decode_tokens_per_s": found.decode_tokens_per_s,
                "time_to_first_token_s": found.time_to_first_token_s,
                "peak_memory_bytes": found.peak_memory_bytes,
                "weight_bytes": found.weight_bytes,
                "stream_bytes_per_s": found.stream_bytes_per_s,
            }
        )
        return
    rows = [
        (f"prefill of {prompt_tokens} tokens", f"{found.prefill_tokens_per_s:.0f} tokens/s"),
        (f"decode of {generate_tokens} tokens", f"{found.decode_tokens_per_s:.1f} tokens/s"),
        ("time to the first token", f"{found.time_to_first_token_s * 1000:.0f} ms"),
        ("peak memory", human_bytes(found.peak_memory_bytes)),
        ("weights", human_bytes(found.weight_bytes)),
        ("weights read while decoding", f"{human_bytes(found.stream_bytes_per_s)}/s"),
    ]
    print_table(("measure", "value"), rows, numbers=("value",))
