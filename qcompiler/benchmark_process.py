"""The process `qcompiler.benchmark` measures in: prints one JSON object, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np

from qcompiler.core.errors import QCompilerError, UsageError
from qcompiler.runtime import LanguageModel, Session, load
from qcompiler.runtime.kernel_times import KernelTimes, time_decode, time_prefill
from qcompiler.runtime.machine_limits import measure_limits
from qcompiler.runtime.session import CHUNK

WRONG_USAGE = 2
"""Exit status: what was asked for cannot be understood, as in `qcompiler.cli`."""


def main() -> None:
    """Load an artifact, time it and print the result."""
    path, *counts, started = sys.argv[1:]
    prompt_tokens, generate_tokens, threads, repeats = map(int, counts)
    try:
        found = _measure(
            path, prompt_tokens, generate_tokens, threads or None, repeats, float(started)
        )
    except QCompilerError as error:
        print(error, file=sys.stderr)
        sys.exit(WRONG_USAGE if isinstance(error, UsageError) else 1)
    print(json.dumps(found))


def _measure(
    path: str,
    prompt_tokens: int,
    generate_tokens: int,
    threads: int | None,
    repeats: int,
    started: float,
) -> dict[str, object]:
    model = load(path, threads=threads)
    assert isinstance(model, LanguageModel)
    session = model.new_session()
    session.prefill([1, 2, 3, 4])
    first_token = time.time() - started
    # Which tokens they are changes no kernel's time.
    prompt = np.arange(prompt_tokens) * 37 % model.vocab_size
    prefill, decode = [], []
    for _ in range(repeats + 1):  # the first one warms up
        session.reset()
        start = time.perf_counter()
        logits = session.prefill(prompt)
        middle = time.perf_counter()
        for _ in range(generate_tokens):
            logits = session.decode(int(logits.argmax()))
        prefill.append(middle - start)
        decode.append(time.perf_counter() - middle)
    found = {
        "prefill_tokens_per_s": prompt_tokens / min(prefill[1:]),
        "decode_tokens_per_s": generate_tokens / min(decode[1:]),
        "time_to_first_token_s": first_token,
        "peak_memory_bytes": peak_memory_bytes(),
        "threads": model.threads,
    }
    return found | _kernels(model, session, prompt, generate_tokens, repeats)


def peak_memory_bytes() -> int:
    """Return the most memory this process has taken.

    A process inherits the peak that `getrusage` tells from the one that started it; not this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) * 1024


def _kernels(
    model: LanguageModel, session: Session, prompt: np.ndarray, generate_tokens: int, repeats: int
) -> dict[str, object]:
    """Return the machine's limits, and the times of the kernels whose costs are known.

    Nothing of an artifact that does not say what its kernels take.
    """
    costs = {
        name: entry.costs
        for name, entry in model.manifest.functions.items()
        if entry.costs is not None
    }
    if not costs:
        return {"limits": None, "functions": []}
    # After the prompt, and as far into what follows as half of what was generated.
    context = prompt.size + (generate_tokens + 1) // 2
    read = max(found.bytes(1, context) for found in costs.values())
    # What else the machine does may slow it down for a while: before and after.
    limits = measure_limits(model.executable, model.manifest.limits, round(read))
    functions = []
    # Longer prompts are read in parts; a single token is no prompt.
    part = prompt[:CHUNK]
    if "prefill" in costs and part.size > 1:
        times = time_prefill(model.executable, session, costs["prefill"], part, repeats)
        functions.append(_function("prefill", part.size, part.size, times))
    session.reset()
    session.prefill(prompt)
    if "decode" in costs:
        tokens = [int(token) for token in np.resize(prompt, generate_tokens)]
        decoded = time_decode(model.executable, session, costs["decode"], tokens)
        if decoded is not None:
            functions.append(_function("decode", 1, context, decoded))
    again = measure_limits(model.executable, model.manifest.limits, round(read))
    return {"limits": dataclasses.asdict(limits.best(again)), "functions": functions}


def _function(name: str, tokens: int, context: int, times: KernelTimes) -> dict[str, object]:
    return {
        "name": name,
        "tokens": tokens,
        "context": context,
        "seconds": times.seconds,
        "kernels": times.kernels,
    }


if __name__ == "__main__":
    main()
