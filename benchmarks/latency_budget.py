"""See whether artifacts keep the latency they were planned for.

    python benchmarks/latency_budget.py --losses FILE [--shares 0.2,0.5,0.8] [--json]

`--losses` are sensitivities that `benchmarks/sensitivity.py --json` has written, of the choices
given. For each share, a budget lies so far between the least and the most milliseconds a token that
plans can take; the plan for it is compiled, rounded to nearest, and timed as `qcompiler bench`
does. Wants a machine without other work.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import qcompiler
import targets
from passes.allocate_bits import AllocateBits
from passes.bit_choices import Budget
from passes.measure_cost import MeasureCost
from passes.rules import Rule
from qcompiler.core.facts import Allocation, Cost, Sensitivity
from qcompiler.core.pass_base import PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.machine_costs import cost_services
from sensitivity import prepare

HEAD = (Rule(kind="embedding", scheme="w8a8g32"), Rule(kind="head", scheme="w8a8g32"))
FUSE = ("fuse-qkv", "fuse-gate-up", "fuse-epilogue", "fuse-rope", "fuse-norm", "legalize")


def pipeline_of(plan: dict[str, str]) -> str:
    """Return a pipeline file that gives every operator the scheme it has in a plan."""
    rules = [f'    {{ pattern = "{name}", scheme = "{scheme}" }},' for name, scheme in plan.items()]
    steps = ['[[pass]]\nname = "canonicalize"', '[[pass]]\nname = "set-bits"\nrules = [', *rules]
    steps += ["]", *(f'[[pass]]\nname = "{name}"' for name in ("quantize-rtn", *FUSE))]
    return "\n".join(steps) + "\n"


def allocate(program: Program, choices: tuple[str, ...], **budget: float) -> Allocation:
    program.plan.clear()
    step = AllocateBits(budget=Budget(**budget), choices=choices, pins=HEAD, front=0)
    step.run(program, PassContext(target=targets.find(targets.NATIVE)))
    found: Allocation = program.facts[Allocation]
    program.plan.clear()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--losses", type=Path, required=True)
    parser.add_argument("--metric", default="fisher")
    parser.add_argument("--choices", default="w4a8g64,w4a8g32,w8a8g32")
    parser.add_argument("--shares", default="0.2,0.5,0.8")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    choices = tuple(options.choices.split(","))
    target = targets.find(targets.NATIVE)
    program = prepare(options.model)
    losses = json.loads(options.losses.read_text())["losses"][options.metric]
    program.facts[Sensitivity] = Sensitivity(metric=options.metric, loss=losses)
    context = PassContext(target=target, **cost_services(target))
    Pipeline((MeasureCost(choices=choices, time="timer"),)).run(program, context)
    rest = program.facts[Cost].rest

    widest = allocate(program, choices, bits_per_weight=32.0).totals["decode_ms"]
    narrow = allocate(program, (choices[0],), bits_per_weight=32.0).totals["decode_ms"]
    rows: list[dict[str, Any]] = []
    for share in map(float, options.shares.split(",")):
        budget = narrow + share * (widest - narrow)
        found = allocate(program, choices, decode_ms=budget)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "plan.toml"
            file.write_text(pipeline_of(dict(found.plan)), encoding="utf-8")
            artifact = qcompiler.compile(options.model, pipeline=file, output=Path(folder) / "a.qc")
            timed = qcompiler.bench(artifact.path)
        row = {"budget_ms": budget, "bits_per_weight": found.totals["bits_per_weight"]}
        row |= {"predicted_ms": found.totals["decode_ms"]}
        row |= {"measured_ms": 1e3 / timed.decode_tokens_per_s}
        row |= {"predicted_prefill_ms": found.totals["prefill_ms"]}
        rows.append(row | {"measured_prefill_ms": 512e3 / timed.prefill_tokens_per_s})
        Console(stderr=True).print(rows[-1])
    if options.json:
        print(json.dumps({"rest_decode_ms": 1e3 * (rest.decode_s or 0), "budgets": rows}, indent=1))
        return
    table = Table(title="latency budgets, ms per token")
    for column in ("budget", "bits per weight", "predicted", "measured", "off by"):
        table.add_column(column, justify="right")
    for row in rows:
        off = row["measured_ms"] / row["budget_ms"] - 1
        table.add_row(
            f"{row['budget_ms']:.3f}",
            f"{row['bits_per_weight']:.3f}",
            f"{row['predicted_ms']:.3f}",
            f"{row['measured_ms']:.3f}",
            f"{off:+.1%}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
