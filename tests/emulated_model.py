"""Have a compiled language model write in the emulator: a small stand-in for the runtime."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qcompiler.core.artifact import read_manifest
from tests import emulator

_TYPES = {"float32": (2, 32), "float16": (2, 16), "int64": (0, 64), "int32": (0, 32)}
_TYPES |= {"int8": (0, 8), "uint8": (1, 8)}  # codes and bits of DLPack


def greedy(
    program: Path, artifact: Path, prompt: Sequence[int], count: int, *, folder: Path, cpu: str
) -> tuple[list[int], np.ndarray]:
    """Return the tokens that follow a prompt, and the logits [count, vocabulary] of each.

    program: what `emulator.build_program` made of greedy.cc; folder: for files it reads and writes.
    """
    plan = folder / "plan.txt"
    plan.write_text(" ".join(map(str, _words(artifact, prompt, count))))
    command = emulator.command(program, str(plan), cpu=cpu)
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    logits = np.fromfile(folder / "logits.bin", np.float32)
    return list(map(int, done.stdout.split())), logits.reshape(count, -1)


def _words(artifact: Path, prompt: Sequence[int], count: int) -> list[object]:
    """What the program reads; its head says in which order."""
    manifest = read_manifest(artifact)
    step = manifest.functions["decode"].step
    assert step is not None
    weights = artifact / "weights.safetensors"
    with weights.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(size))
    words: list[object] = [artifact / "model.so", weights, len(manifest.weights)]
    for spec in manifest.weights:
        offset = 8 + size + entries[spec.name]["data_offsets"][0]
        words += [offset, *_TYPES[spec.dtype], len(spec.shape), *spec.shape]
    capacity = 64 * -(-(len(prompt) + count) // 64)
    caches = manifest.model.kv
    words += [capacity, len(caches)]
    for cache in caches:
        words += [cache.heads, cache.row, *_TYPES[cache.dtype]]
    words += [step.symbol, step.shared_bytes, step.thread_bytes, manifest.model.vocab_size]
    return [*words, count, len(prompt), *prompt]
