"""What training will take in memory, and whether there is as much: said before it begins."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import fx

from passes.segments import Segment, segments
from qcompiler.core import ops
from qcompiler.core.calibration import Calibration
from qcompiler.core.errors import QCompilerError
from qcompiler.core.facts import FakeQuantization
from qcompiler.core.pass_base import PassContext
from qcompiler.core.program import Program

if TYPE_CHECKING:
    from passes.train_fake_quant import TrainFakeQuant

LOGITS = 6
"""How many tensors of the size of the predictions a loss holds at once, with their gradients."""

OF_WEIGHTS = ops.TRAINED_AWAY - {ops.fake_quantize}
"""Operators whose results are weights."""

LIBRARIES = 500 << 20
"""What Python, torch and the rest take before anything is done."""


def check_memory(
    program: Program, context: PassContext, step: TrainFakeQuant, calibration: Calibration
) -> None:
    """Refuse a training for which there is not enough memory.

    Raises:
        QCompilerError: says how much there is, how much it would take, and what would do.
    """
    free = available_memory()
    tokens = max(sample[0].numel() for sample in calibration.samples)
    whole = whole_bytes(program, tokens, recompute=step.recompute) if step.steps else 0
    block = block_bytes(program, tokens) if step.block_steps else 0
    needed = max(whole, block)
    if free is None or needed <= free:
        return
    ways = []
    if whole > free and not step.recompute:
        ways.append(("recompute = true", whole_bytes(program, tokens, recompute=True)))
    if whole > free:
        ways.append(("steps = 0, which trains blocks alone,", block_bytes(program, tokens)))
    said = [f"{name} takes {_gb(size)}" for name, size in ways if size <= free]
    said.append("shorter samples take less")
    raise QCompilerError(
        f"pass '{step.name}' takes about {_gb(needed)} of memory for samples of {tokens} tokens, "
        f"and {_gb(free)} are free; {', '.join(said)}"
    )


def whole_bytes(program: Program, tokens: int, *, recompute: bool) -> int:
    """Estimate the most that training from end to end holds at once."""
    parts = segments(program)
    each = [activation_bytes(part, tokens) for part in parts]
    boundary = max((_live_bytes(part, tokens) for part in parts), default=0)
    kept = max(each[:-1], default=0) + len(parts) * boundary if recompute else sum(each[:-1])
    (output,) = program.graph.output_node().all_input_nodes
    predictions = LOGITS * _bytes_of(output, tokens)
    return LIBRARIES + kept + predictions + _weight_bytes(program, None)


def block_bytes(program: Program, tokens: int) -> int:
    """Estimate the most that training one block holds at once, beside values kept for samples."""
    parts = segments(program)
    body = parts[:-1] if len(parts) > 1 else parts
    return LIBRARIES + max(
        activation_bytes(part, tokens) + _weight_bytes(program, part) for part in body
    )


def activation_bytes(part: Segment, tokens: int) -> int:
    """Return what the values of a segment take, all of them, for one sample."""
    nodes = [node for node in part.nodes if node.target not in OF_WEIGHTS]
    return sum(_bytes_of(node, tokens) for node in nodes)


def available_memory() -> int | None:
    """Return the bytes that can be had without swapping, None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    free = None if found is None else int(found[1]) << 10
    try:
        most = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        within = None if most == "max" else max(0, int(most) - used)
    except (OSError, ValueError):
        within = None
    known = [value for value in (free, within) if value is not None]
    return min(known, default=None)


def _weight_bytes(program: Program, part: Segment | None) -> int:
    """Estimate weights: rounded, with a gradient where they learn, and what the optimiser keeps."""
    fact: FakeQuantization = program.facts[FakeQuantization]
    inside = None if part is None else set(map(id, part.nodes))
    names = {
        program.weights.resolve(str(node.target))
        for node in program.graph.nodes
        if node.op == "get_attr"
        and (inside is None or any(id(user) in inside for user in node.users))
    }
    total = 0
    for name in names:
        size = 4 * math.prod(program.weights.shape(name))
        # As it is, rounded, and the gradient of that.
        total += 3 * size
        if name in fact.trainable:
            # The parameter, its gradient, two means of Adam's and the best so far.
            total += 5 * size
    return total


def _live_bytes(part: Segment, tokens: int) -> int:
    inside = set(part.nodes)
    crossing = {s for node in part.nodes for s in node.all_input_nodes if s not in inside}
    return sum(_bytes_of(n, tokens) for n in crossing if n.op == "call_function")


def _bytes_of(node: fx.Node, tokens: int) -> int:
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor):
        return 0
    sizes = [size if isinstance(size, int) else tokens for size in val.shape]
    return math.prod(sizes) * val.element_size()


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
