"""The process `qcompiler.benchmark` measures in: prints one JSON object, and nothing else."""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np

from qcompiler.core.errors import QCompilerError, UsageError
from qcompiler.runtime import LanguageModel, load

WRONG_USAGE = 2
"""Exit status: what was asked for cannot be understood, as in `qcompiler.cli`."""


def main() -> None:
    """Load an artifact, time it and print the result."""
    path, *counts, started = sys.argv[1:]
    prompt_tokens, generate_tokens, threads, repeats = map(int, counts)
    try:
        model = load(path, threads=threads or None)
    except QCompilerError as error:
        print(error, file=sys.stderr)
        sys.exit(WRONG_USAGE if isinstance(error, UsageError) else 1)
    assert isinstance(model, LanguageModel)
    session = model.new_session()
    session.prefill([1, 2, 3, 4])
    first_token = time.time() - float(started)
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
    print(
        json.dumps(
            {
                "prefill_tokens_per_s": prompt_tokens / min(prefill[1:]),
                "decode_tokens_per_s": generate_tokens / min(decode[1:]),
                "time_to_first_token_s": first_token,
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "threads": model.threads,
            }
        )
    )


if __name__ == "__main__":
    main()
