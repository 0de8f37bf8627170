"""See whether artifacts keep the latency they were planned for.

    python benchmarks/latency_budget.py --losses FILE [--shares 0.2,0.5,0.8] [--json]

`--losses` are sensitivities that `benchmarks/sensitivity.py --json` has written, of the choices
given. For each share, a budget lies so far between the least and the most milliseconds a token that
plans can take; the plan for it is compiled, rounded to nearest, and timed as `qcompiler bench`
does. Wants a machine without other work.

Artifacts are timed in turns with one of the first choice alone, the best of several rounds: a
machine that has become slower since it was measured, as shared machines do, shows as drift, and
what is left is the error of the plan.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

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


def build(model: str, plan: Allocation, folder: Path) -> Path:
    """Compile a model by a plan, rounded to nearest, and return where the artifact is."""
    folder.mkdir()
    file = folder / "plan.toml"
    file.write_text(pipeline_of(dict(plan.plan)), encoding="utf-8")
    return qcompiler.compile(model, pipeline=file, output=folder / "a.qc").path


def time_in_turns(paths: list[Path], rounds: int) -> list[float]:
    """Return the milliseconds of a token of each artifact, the best of several rounds."""
    best = [float("inf")] * len(paths)
    for _ in range(rounds):
        for index, path in enumerate(paths):
            best[index] = min(best[index], 1e3 / qcompiler.bench(path).decode_tokens_per_s)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--losses", type=Path, required=True)
    parser.add_argument("--metric", default="fisher")
    parser.add_argument("--choices", default="w4a8g64,w4a8g32,w8a8g32")
    parser.add_argument("--shares", default="0.2,0.5,0.8")
    parser.add_argument("--rounds", type=int, default=3)
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
    uniform = allocate(program, choices[:1], bits_per_weight=32.0)
    planned = []
    for share in map(float, options.shares.split(",")):
        budget = narrow + share * (widest - narrow)
        planned.append((budget, allocate(program, choices, decode_ms=budget)))
    with tempfile.TemporaryDirectory() as folder:
        plans = [uniform, *(found for _, found in planned)]
        paths = [build(options.model, found, Path(folder, f"{i}")) for i, found in enumerate(plans)]
        reference, *measured = time_in_turns(paths, options.rounds)
    drift = reference / uniform.totals["decode_ms"]
    rows = [
        {
            "bits_per_weight": found.totals["bits_per_weight"],
            "budget_ms": budget,
            "predicted_ms": found.totals["decode_ms"],
            "measured_ms": took,
            "off": took / budget - 1,
            "off_without_drift": took / budget / drift - 1,
        }
        for (budget, found), took in zip(planned, measured, strict=True)
    ]
    if options.json:
        print(
            json.dumps(
                {"rest_decode_ms": 1e3 * (rest.decode_s or 0), "drift": drift, "budgets": rows},
                indent=1,
            )
        )
        return
    table = Table(title="latency budgets, ms per token", caption=f"drift: {drift - 1:+.1%}")
    for column in ("bits per weight", "budget", "predicted", "measured", "off", "without drift"):
        table.add_column(column, justify="right")
    for row in rows:
        bits, *times, off, without = row.values()
        table.add_row(f"{bits:.3f}", *(f"{t:.3f}" for t in times), f"{off:+.1%}", f"{without:+.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
