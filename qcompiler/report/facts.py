"""What a report says that no pass has to record: of the samples, and of every operator."""

from __future__ import annotations

from typing import Any

import torch

from qcompiler.core import ops
from qcompiler.core.calibration import Calibration
from qcompiler.core.pass_base import PassContext
from qcompiler.core.program import LINEARS, ModelInfo, Program, operator_name, weight_of
from qcompiler.report.content import SCHEMA

_TABLES = frozenset({ops.embedding, ops.quantized_embedding})


def describe(
    program: Program, context: PassContext, pipeline: list[dict[str, Any]]
) -> dict[str, object]:
    """Return the content of the report of a program that has been through `pipeline`."""
    content: dict[str, object] = {
        "schema": SCHEMA,
        "pipeline": pipeline,
        "notes": context.notes,
        "operators": operator_facts(program),
        "records": context.records,
    }
    if context.calibration is not None:
        content["calibration"] = calibration_facts(context.calibration, program.info)
    return content


def calibration_facts(calibration: Calibration, info: ModelInfo) -> dict[str, object]:
    """Say where samples are from, how many there are and how much of the vocabulary they cover."""
    facts: dict[str, object] = {
        "source": calibration.source,
        "generated": calibration.generated,
        "samples": len(calibration),
        "digest": calibration.digest,
    }
    if info.kind == "causal-lm" and len(calibration):
        ids = torch.cat([sample[0].reshape(-1) for sample in calibration.samples])
        distinct = torch.bincount(ids).count_nonzero()
        facts["tokens"] = len(ids)
        facts["distinct_tokens"] = int(distinct)
        facts["vocabulary"] = info.vocab_size
    return facts


def operator_facts(program: Program) -> dict[str, dict[str, object]]:
    """Give shape, scheme and stored bits per weight of every product and table, in graph order."""
    found: dict[str, dict[str, object]] = {}
    for node in program.graph.nodes:
        if node.op != "call_function" or node.target not in LINEARS | _TABLES:
            continue
        if (weight := weight_of(node)) is None:
            continue
        entry = program.weights.resolve(weight)
        shape = program.weights.shape(entry)
        stored = program.weights.format(entry)
        scheme = program.plan.get(operator_name(weight)) or program.plan.get(operator_name(entry))
        bits = float(8 * program.weights.dtype(entry).itemsize)
        found[operator_name(entry)] = {
            "shape": list(shape),
            "scheme": None if scheme is None else str(scheme),
            "bits_per_weight": bits if stored is None else stored.bits_per_weight(shape[-1]),
        }
    return found
