"""Compare the loss that sensitivities predict of random plans with the loss that is measured.

    python benchmarks/sensitivity.py TEXT [--plans 20] [--metrics fisher,hessian] [--json FILE]

The first half of the text calibrates, the second is predicted. Two kinds of plans are drawn. In
"mixed" ones every operator gets a choice at random, the narrowest with a share that differs from
plan to plan: their sizes differ, and the size alone says much about the loss. In "equal" ones the
narrowest choice goes to operators in random order up to half of the weights in layers, the widest
to the others and to what is a tenth of the model or more: their sizes are alike, so that only the
sensitivities can tell them apart. Measured are the KL divergence from the float model's
predictions and the rise of the negative log-likelihood.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import pearsonr, spearmanr

import targets
from passes.canonicalize import Canonicalize
from passes.measure_sensitivity import MeasureSensitivity
from passes.quantizable import Quantizable, quantizable
from passes.rounding import round_to_nearest
from passes.segments import segments
from qcompiler.calibration import build_calibration
from qcompiler.core.facts import Sensitivity
from qcompiler.core.formats import QuantScheme
from qcompiler.core.pass_base import PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program, operator_name, weight_of
from qcompiler.frontend.capture import capture
from qcompiler.tokenizer import open_tokenizer

Plan = dict[str, str]
Measured = dict[str, float]


class Scorer:
    """Measures plans on windows of held-out tokens, with the whole model in memory."""

    def __init__(self, program: Program, windows: list[torch.Tensor]) -> None:
        self.program, self.windows = program, windows
        self.operators = {w.operator: w for w in quantizable(program).values()}
        self.weights = {
            entry: program.weights.tensor(entry)
            for node in program.graph.nodes
            if node.op == "get_attr"
            for entry in [program.weights.resolve(str(node.target))]
        }
        self.codes: dict[tuple[str, str], torch.Tensor] = {}
        self.plain = [self._predict(window, {}) for window in windows]

    def measure(self, plan: Plan) -> Measured:
        """Return the KL divergence and the rise of the negative log-likelihood, per token."""
        kl = rise = 0.0
        for window, p in zip(self.windows, self.plain, strict=True):
            q = self._predict(window, plan)
            kl += float((p.exp() * (p - q))[:-1].sum(dtype=torch.float64))
            next_token = window[1:].unsqueeze(1)
            rise += float((p - q)[:-1].gather(1, next_token).sum(dtype=torch.float64))
        count = sum(len(window) - 1 for window in self.windows)
        return {"kl": kl / count, "nll_rise": rise / count}

    def _predict(self, tokens: torch.Tensor, plan: Plan) -> torch.Tensor:
        """Return log-probabilities after every token, [t, vocab]."""
        weights, schemes = dict(self.weights), {}
        for operator, text in plan.items():
            weight = self.operators[operator]
            weights[weight.entry] = self._rounded(weight, text)
            for node in weight.products:
                schemes[operator_name(str(weight_of(node)))] = QuantScheme.parse(text)
        parts = segments(self.program)
        values = parts[0].order.inputs((tokens,))
        with torch.no_grad():
            for part in parts:
                values = part.run(
                    values, lambda name: weights[self.program.weights.resolve(name)], schemes
                )
        (out,) = self.program.graph.output_node().all_input_nodes
        logits = values[out.name]
        assert isinstance(logits, torch.Tensor)
        return logits[0].log_softmax(-1)

    def _rounded(self, weight: Quantizable, text: str) -> torch.Tensor:
        key = weight.operator, text
        if key not in self.codes:
            form = QuantScheme.parse(text).weight
            codes = round_to_nearest(self.weights[weight.entry], form)
            self.codes[key] = codes.dequantize()
        return self.codes[key]


def mixed_plans(operators: list[Quantizable], choices: list[str], seed: int) -> Iterator[Plan]:
    generator = random.Random(seed)
    while True:
        share = generator.random()
        narrow, others = choices[0], choices[1:]
        yield {
            w.operator: narrow if generator.random() < share else generator.choice(others)
            for w in operators
        }


def equal_plans(operators: list[Quantizable], choices: list[str], seed: int) -> Iterator[Plan]:
    generator = random.Random(seed)
    size = {w.operator: w.shape[0] * w.shape[1] for w in operators}
    free = [name for name in size if size[name] < sum(size.values()) / 10]
    half = sum(size[name] for name in free) / 2
    while True:
        plan, used = dict.fromkeys(size, choices[-1]), 0
        for name in generator.sample(free, len(free)):
            if used + size[name] <= half:
                plan[name] = choices[0]
                used += size[name]
        yield plan


@dataclass
class Correlation:
    """How well predictions of one metric agree with what was measured of plans of one kind."""

    spearman_kl: float
    pearson_kl: float
    spearman_nll: float
    ratio: float

    @classmethod
    def of(cls, predicted: list[float], measured: list[Measured]) -> Correlation:
        kl = [m["kl"] for m in measured]
        nll = [m["nll_rise"] for m in measured]
        ratios = [a / b for a, b in zip(predicted, kl, strict=True)]
        return cls(
            float(spearmanr(predicted, kl).statistic),
            float(pearsonr(predicted, kl).statistic),
            float(spearmanr(predicted, nll).statistic),
            statistics.median(ratios),
        )


def halves(text: str) -> tuple[str, str]:
    """Cut a text at the end of the line that has its middle."""
    middle = text.index("\n", len(text) // 2) + 1
    return text[:middle], text[middle:]


def prepare(model: str) -> Program:
    program = capture(model)
    Pipeline((Canonicalize(),)).run(program, PassContext(target=targets.TARGETS[0]))
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--choices", default="w4a8g64,w8a8g32", help="from narrow to wide")
    parser.add_argument("--metrics", default="fisher,hessian,weight-variance")
    parser.add_argument("--plans", type=int, default=20, help="of each kind")
    parser.add_argument("--tokens", type=int, default=2048, help="that are predicted")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="written after each plan; read if it is there")
    options = parser.parse_args()
    console = Console(stderr=True)
    choices = options.choices.split(",")

    program = prepare(options.model)
    first, second = halves(options.text.read_text(encoding="utf-8"))
    found: dict[str, Any] = {"settings": {}, "losses": {}, "seconds": {}, "plans": []}
    if options.json is not None and options.json.exists():
        found |= json.loads(options.json.read_text())
    found["settings"] = {k: str(v) for k, v in vars(options).items()}

    samples = build_calibration(program, [first])
    for metric in options.metrics.split(","):
        if metric in found["losses"]:
            continue
        start = time.perf_counter()
        context = PassContext(target=targets.TARGETS[0], calibration=samples)
        step = MeasureSensitivity(metric=metric, choices=tuple(choices), seed=options.seed)
        Pipeline((step,)).run(program, context)
        found["losses"][metric] = program.facts[Sensitivity].loss
        found["seconds"][metric] = time.perf_counter() - start
        console.print(f"{metric}: {found['seconds'][metric]:.0f} s")
        save(found, options.json)

    encoded = open_tokenizer(program.info.name, program.info.tokenizer_json).encode(second)
    held_out = torch.tensor(encoded.ids[: options.tokens])
    starts = range(0, len(held_out) - 1, options.window)
    scorer = Scorer(program, [held_out[start : start + options.window] for start in starts])
    operators = list(scorer.operators.values())
    for kind, draw in (("mixed", mixed_plans), ("equal", equal_plans)):
        plans = itertools.islice(draw(operators, choices, options.seed), options.plans)
        done = sum(plan["kind"] == kind for plan in found["plans"])
        for number, plan in enumerate(plans):
            if number < done:
                continue
            measured = scorer.measure(plan)
            found["plans"].append({"kind": kind, "plan": plan, **measured})
            console.print(f"{kind} {number + 1}: KL {measured['kl']:.4f}")
            save(found, options.json)
    show(found)


def show(found: dict[str, Any]) -> None:
    """Print how well each metric predicts, by kind of plans."""
    table = Table(title="predicted against measured loss: Spearman's ρ, Pearson's r")
    table.add_column("metric", no_wrap=True)
    for column in ("plans", "ρ KL", "r KL", "ρ NLL", "ratio", "seconds"):
        table.add_column(column, justify="right")
    for metric, loss in found["losses"].items():
        for kind in ("mixed", "equal"):
            plans = [plan for plan in found["plans"] if plan["kind"] == kind]
            if len(plans) < 3:
                continue
            predicted = [sum(loss[name][s] for name, s in p["plan"].items()) for p in plans]
            result = Correlation.of(predicted, plans)
            table.add_row(
                metric,
                f"{len(plans)} {kind}",
                f"{result.spearman_kl:.3f}",
                f"{result.pearson_kl:.3f}",
                f"{result.spearman_nll:.3f}",
                f"{result.ratio:.2g}",
                f"{found['seconds'][metric]:.0f}",
            )
    Console().print(table)


def save(found: dict[str, Any], file: Path | None) -> None:
    if file is not None:
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
