"""Compare allocators: the measured loss of the plans they choose for several budgets.

    python benchmarks/allocation.py TEXT [--budgets 4.3,4.5,…] [--json FILE] [--losses FILE]

The first half of the text calibrates, the second is predicted. Weights are rounded to nearest, so
that plans alone differ; embedding and head have 8 bits. Measured are the KL divergence from the
float model's predictions and the rise of the negative log-likelihood. `--losses` reads the
sensitivities that `benchmarks/sensitivity.py --json` has written.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import targets
from passes.allocate_bits import AllocateBits
from passes.bit_choices import Budget
from passes.measure_sensitivity import MeasureSensitivity
from passes.rules import Rule
from qcompiler.calibration import build_calibration
from qcompiler.core.errors import ConfigError
from qcompiler.core.facts import Allocation, Sensitivity
from qcompiler.core.pass_base import PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.tokenizer import open_tokenizer
from sensitivity import Scorer, halves, prepare, save

ALLOCATORS = ("milp", "greedy", "closed-form", "uniform")
HEAD = (Rule(kind="embedding", scheme="w8a8g32"), Rule(kind="head", scheme="w8a8g32"))


def measured_losses(program: Program, text: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the sensitivities of a program, measured or read from a file."""
    if options.losses is not None:
        known: dict[str, Any] = json.loads(options.losses.read_text())["losses"]
        return dict(known[options.metric])
    choices = tuple(options.choices.split(","))
    step = MeasureSensitivity(metric=options.metric, choices=choices)
    samples = build_calibration(program, [text])
    Pipeline((step,)).run(program, PassContext(target=targets.TARGETS[0], calibration=samples))
    return dict(program.facts[Sensitivity].loss)


def allocate(program: Program, allocator: Any, bits: float, choices: tuple[str, ...]) -> Allocation:
    """Return the plan that an allocator chooses for a number of bits per weight."""
    program.plan.clear()
    step = AllocateBits(
        budget=Budget(bits_per_weight=bits),
        choices=choices,
        pins=HEAD,
        allocator=allocator,
        front=0,
    )
    step.run(program, PassContext(target=targets.TARGETS[0]))
    found: Allocation = program.facts[Allocation]
    program.plan.clear()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--choices", default="w4a8g64,w4a8g32,w8a8g32")
    parser.add_argument("--budgets", default="4.3,4.4,4.5,4.75,5,5.5,6.5", help="bits per weight")
    parser.add_argument("--metric", default="fisher")
    parser.add_argument("--losses", type=Path)
    parser.add_argument("--tokens", type=int, default=4088, help="that are predicted")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--json", type=Path, help="written after each plan; read if it is there")
    options = parser.parse_args()
    console = Console(stderr=True)
    choices = tuple(options.choices.split(","))
    program = prepare(options.model)
    first, second = halves(options.text.read_text(encoding="utf-8"))
    found: dict[str, Any] = {"settings": {}, "plans": []}
    if options.json is not None and options.json.exists():
        found |= json.loads(options.json.read_text())
    found["settings"] = {k: str(v) for k, v in vars(options).items()}
    losses = measured_losses(program, first, options)
    program.facts[Sensitivity] = Sensitivity(metric=options.metric, loss=losses)

    encoded = open_tokenizer(program.info.name, program.info.tokenizer_json).encode(second)
    held_out = torch.tensor(encoded.ids[: options.tokens])
    starts = range(0, len(held_out) - 1, options.window)
    scorer = Scorer(program, [held_out[at : at + options.window] for at in starts])
    for bits in map(float, options.budgets.split(",")):
        for allocator in ALLOCATORS:
            if any((p["budget"], p["allocator"]) == (bits, allocator) for p in found["plans"]):
                continue
            start = time.perf_counter()
            try:
                plan = allocate(program, allocator, bits, choices)
            except ConfigError as error:
                console.print(f"{allocator} at {bits}: {error}")
                continue
            seconds = time.perf_counter() - start
            measured = scorer.measure({n: s for n, s in plan.plan.items() if s != "float"})
            found["plans"].append(
                {"budget": bits, "allocator": allocator, "predicted": plan.loss, "seconds": seconds}
                | {"bits_per_weight": plan.totals["bits_per_weight"], **measured}
            )
            console.print(f"{allocator} at {bits}: KL {measured['kl']:.4f}")
            save(found, options.json)
    show(found)


def show(found: dict[str, Any]) -> None:
    """Print, by budget, what each allocator's plan was predicted to lose and what it loses."""
    table = Table(title="predicted loss / measured KL / measured rise of the NLL")
    table.add_column("bits per weight", justify="right")
    for allocator in ALLOCATORS:
        table.add_column(allocator, justify="right")
    by_place = {(p["budget"], p["allocator"]): p for p in found["plans"]}
    for budget in dict.fromkeys(p["budget"] for p in found["plans"]):
        cells = []
        for allocator in ALLOCATORS:
            p = by_place.get((budget, allocator))
            figures = None if p is None else (p["predicted"], p["kl"], p["nll_rise"])
            cells.append("—" if figures is None else " / ".join(f"{x:.4f}" for x in figures))
        table.add_row(f"{budget:g}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
