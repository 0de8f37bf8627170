"""What the workers share: the clock, the memory, and how a worker is called.

    python WORKER prepare VARIANT SOURCE TARGET
    python WORKER time VARIANT PATH --contexts 512,2048 --generate 128 --threads 2

`time` prints one JSON object as its last line. Only what comes with Python is imported here: a
worker may run with the interpreter of another environment.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

SHORT = 8
"""Tokens of the prompt whose first answer is waited for from the start of the process."""

WARM_UP = 4
"""Tokens that are decoded once before the clock counts."""


class Engine(Protocol):
    """A loaded model."""

    def run(self, prompt: list[int], count: int) -> tuple[float, float]:
        """Forget everything, read a prompt, decode greedily; return the seconds of both.

        The first counts until the most likely next token is known, the second until it is known
        after `count` more tokens, which may be none.
        """
        ...


class StepEngine:
    """An engine that is called for each token: what is left to define are the two steps."""

    def prefill(self, prompt: list[int]) -> int:
        """Forget everything, read a prompt and return the most likely next token."""
        raise NotImplementedError

    def decode(self, token: int) -> int:
        """Read a token and return the most likely next one."""
        raise NotImplementedError

    def run(self, prompt: list[int], count: int) -> tuple[float, float]:
        start = time.perf_counter()
        token = self.prefill(prompt)
        middle = time.perf_counter()
        for _ in range(count):
            token = self.decode(token)
        return middle - start, time.perf_counter() - middle


def peak_memory(status: Path = Path("/proc/self/status")) -> int:
    """Return the most bytes of memory that this process has held.

    The resource usage that Python tells of begins with that of the process that started this one.
    """
    for line in status.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    raise SystemExit(f"{status} does not tell the peak of memory")


def prompt_of(length: int) -> list[int]:
    """Return tokens that every vocabulary has; which they are changes no engine's time."""
    return [100 + i * 37 % 20000 for i in range(length)]


def measure(
    engine: Engine, contexts: list[int], generate: int, repeats: int, started: float
) -> dict[str, Any]:
    """Time an engine that was just loaded; rates are lists, tokens per second, one a repeat."""
    engine.run(prompt_of(SHORT), 0)
    first_token = time.time() - started
    found: dict[str, Any] = {}
    for length in contexts:
        prompt = prompt_of(length)
        engine.run(prompt, WARM_UP)
        timed = [engine.run(prompt, generate) for _ in range(repeats)]
        found[str(length)] = {
            "prefill_tokens_per_s": [length / prefill for prefill, _ in timed],
            "decode_tokens_per_s": [generate / decode for _, decode in timed],
        }
    return {
        "contexts": found,
        "first_token_s": first_token,
        "peak_memory_bytes": peak_memory(),
    }


def main(
    prepare: Callable[[str, str, Path], None],
    load: Callable[[str, Path, int, int], Engine],
) -> None:
    """Do what the command line asks.

    prepare: takes a variant, the source and where to write what `load` will read. load: takes a
    variant, that path, the number of threads and the most tokens that a sequence will have.
    """
    parser = argparse.ArgumentParser()
    tasks = parser.add_subparsers(dest="task", required=True)
    task = tasks.add_parser("prepare")
    task.add_argument("variant")
    task.add_argument("source")
    task.add_argument("target", type=Path)
    task = tasks.add_parser("time")
    task.add_argument("variant")
    task.add_argument("path", type=Path)
    task.add_argument("--contexts", required=True)
    task.add_argument("--generate", type=int, required=True)
    task.add_argument("--threads", type=int, required=True)
    task.add_argument("--repeats", type=int, default=2)
    task.add_argument("--started", type=float, default=time.time(), help="seconds of the epoch")
    options = parser.parse_args()
    if options.task == "prepare":
        prepare(options.variant, options.source, options.target)
        return
    contexts = [int(length) for length in options.contexts.split(",")]
    room = max(SHORT, *contexts) + options.generate + 1
    engine = load(options.variant, options.path, options.threads, room)
    result = measure(engine, contexts, options.generate, options.repeats, options.started)
    sys.stdout.write(json.dumps(result) + "\n")
