"""Facts that took long to measure, kept from one run to the next under a hash of their causes."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from qcompiler.core.cache import read_cached, write_cached
from qcompiler.core.options import spec
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.printer import print_program
from qcompiler.core.program import Program
from qcompiler.core.qtensor import QuantizedTensor


def run_or_recall(step: Pass, program: Program, context: PassContext) -> None:
    """Run a measuring pass, or take from the cache what it found in the same circumstances.

    These are the graph, the weights, the samples, the options, the target, and the pass's code. The
    facts it adds must be dataclasses of what JSON can say.
    """
    key = f"facts/{_digest(step, program, context)}.json"
    if (kept := _recall(key)) is not None:
        for kind in step.adds:
            program.facts[kind] = kind(**kept["facts"][kind.__name__])
        context.records |= {step.name: kept["records"]}
        context.notes |= {step.name: kept["notes"]} if kept["notes"] else {}
        return
    step.run(program, context)
    kept = {
        "facts": {kind.__name__: dataclasses.asdict(program.facts[kind]) for kind in step.adds},
        "records": context.records.get(step.name, {}),
        "notes": context.notes.get(step.name, []),
    }
    write_cached(key, json.dumps(kept).encode())


def _recall(key: str) -> dict[str, Any] | None:
    """Return what was kept, None if there is nothing or it is damaged."""
    found = read_cached(key)
    try:
        kept: dict[str, Any] | None = None if found is None else json.loads(found)
    except ValueError:
        return None
    return kept


def _digest(step: Pass, program: Program, context: PassContext) -> str:
    digest = hashlib.sha256()
    said = [spec(step), context.target.name, str(program.stage), torch.__version__]
    digest.update(json.dumps(said, sort_keys=True).encode())
    digest.update(print_program(program).encode())
    if step.calibrates and context.calibration is not None:
        digest.update(context.calibration.digest.encode())
    for file in _sources(type(step)):
        digest.update(file.read_bytes())
    for name in program.weights:
        digest.update(name.encode())
        weight = program.weights.get(name)
        parts = [weight]
        if isinstance(weight, QuantizedTensor):
            zero = [] if weight.zero_point is None else [weight.zero_point]
            parts = [weight.codes, weight.scale, *zero]
        for part in parts:
            assert isinstance(part, torch.Tensor)
            digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


def _sources(kind: type[Any]) -> list[Path]:
    """Return the file of a pass and of what it imports from its own package, directly or not."""
    package = kind.__module__.partition(".")[0]
    found: dict[str, Path] = {}
    waiting = [kind.__module__]
    while waiting:
        name = waiting.pop()
        file = getattr(sys.modules.get(name), "__file__", None)
        if name in found or file is None:
            continue
        found[name] = Path(file)
        for node in ast.walk(ast.parse(found[name].read_bytes())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
                waiting += [str(node.module), *(f"{node.module}.{a.name}" for a in node.names)]
    return [found[name] for name in sorted(found)]
