"""Quantise one model to 4 bits with this compiler's methods and with a rival's, and compare.

    python benchmarks/gptq_peers.py TEXT [--samples 32] [--length 512] [--gptqmodel PYTHON]

All calibrate on the same samples of the first half of the text and predict the second half, in
torch, through the same arithmetic: the products of the layers in 4 bits, symmetric, a scale for a
group of inputs; embedding and head stay float. Shown are the rise of the negative log-likelihood
over the float model, with its 95 % interval, and the divergence from it, with float activations
and with activations of 8 bits. GPTQModel is left out where it is not installed; it may live in an
environment of its own, whose Python is told with --gptqmodel.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

import targets
from passes.canonicalize import Canonicalize
from passes.planned import planned_weights, put_codes
from passes.quantize_gptq import QuantizeGptq
from passes.quantize_rtn import QuantizeRtn
from passes.quantize_signround import QuantizeSignround
from passes.segments import segments
from passes.set_bits import Rule, SetBits
from qcompiler.core.calibration import Calibration
from qcompiler.core.formats import QuantScheme
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.stage import Stage
from qcompiler.evaluation import Evaluation, evaluate
from qcompiler.frontend.capture import capture
from qcompiler.packaged import packaged_file
from qcompiler.tokenizer import open_tokenizer

MACHINE = replace(targets.TARGETS[0], schemes=("w*",))
"""No kernel runs here, so that formats without one may be compared as well."""

FOLDER = Path(__file__).resolve().parent / "rivals"


@dataclass(frozen=True)
class Rival:
    """Another quantiser: its package, and the script that runs it."""

    name: str
    package: str
    worker: str

    @property
    def option(self) -> str:
        return f"--{self.name.lower()}"

    def is_installed(self, python: str) -> bool:
        """Say whether that interpreter finds the package."""
        asked = f"import importlib.util as u, sys; sys.exit(not u.find_spec({self.package!r}))"
        return not subprocess.run([python, "-P", "-c", asked], check=False).returncode


RIVALS = (Rival("GPTQModel", "gptqmodel", "gptqmodel_worker.py"),)

METHODS: dict[str, Pass] = {
    "round to nearest, -7 to 7": QuantizeRtn(range="restricted"),
    "round to nearest": QuantizeRtn(),
    "searched by weight": QuantizeRtn(search="weight"),
    "searched by activation": QuantizeRtn(search="activation"),
    "gptq, plain": QuantizeGptq(
        order="natural", scales="static", search="none", damping=0.01, sweeps=0, correction=0.0
    ),
    "gptq, no correction": QuantizeGptq(correction=0.0),
    "gptq, no sweeps": QuantizeGptq(sweeps=0),
    "gptq": QuantizeGptq(),
    "learned rounding": QuantizeSignround(start="search", learn="rounding"),
    "gptq, learned rounding": QuantizeSignround(learn="rounding"),
    "gptq, learned scales": QuantizeSignround(),
}


@dataclass
class Row:
    """What one method gave in one scheme."""

    method: str
    scheme: str
    rise: float
    interval: tuple[float, float]
    kl: float
    top1: float
    seconds: float


class Comparison:
    """One model, what it is calibrated on, and the text that it is to predict."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.console = Console(stderr=True)
        program = self.program()
        tokenizer = open_tokenizer(program.info.name, program.info.tokenizer_json)
        first, second = _halves(options.text.read_text(encoding="utf-8"))
        ids = tokenizer.encode(first, add_special_tokens=False).ids
        n, length = options.samples, options.length
        if len(ids) < n * length:
            raise SystemExit(f"{options.text} has too little text for {n} samples of {length}")
        self.samples = [ids[i * length : (i + 1) * length] for i in range(n)]
        self.tokens = tokenizer.encode(second, add_special_tokens=False).ids[: options.tokens]
        self.plain = _logits(program, keep=True)

    def program(self) -> Program:
        program = capture(self.options.model)
        Pipeline((Canonicalize(),)).run(program, PassContext(target=MACHINE))
        return program

    def planned(self, scheme: str) -> Program:
        program = self.program()
        rules = (
            Rule(scheme=scheme),
            Rule(kind="embedding", scheme="float"),
            Rule(kind="head", scheme="float"),
        )
        SetBits(rules=rules).run(program, PassContext(target=MACHINE))
        program.stage = Stage.PLANNED
        return program

    def ours(self, method: str, scheme: str) -> Row:
        program = self.planned(scheme)
        calibration = Calibration(
            samples=tuple((torch.tensor(part),) for part in self.samples), source="the text"
        )
        context = PassContext(target=MACHINE, calibration=calibration)
        start = time.perf_counter()
        Pipeline((METHODS[method],), start=Stage.PLANNED).run(program, context)
        return self.score(method, scheme, program, time.perf_counter() - start)

    def rival(self, rival: Rival, python: str, schemes: list[str]) -> list[Row]:
        """Run a rival once; its codes serve for either kind of activations."""
        if not rival.is_installed(python):
            name = rival.package.replace("_", "-")
            self.console.print(f"{rival.name} is left out; install it with: pip install {name}")
            return []
        group = QuantScheme.parse(schemes[0]).weight.group_size(1 << 30)
        with tempfile.TemporaryDirectory() as folder:
            samples, out = Path(folder, "samples.json"), Path(folder, "codes.safetensors")
            samples.write_text(json.dumps(self.samples), encoding="utf-8")
            model = str(packaged_file(self.options.model))
            worker = str(FOLDER / rival.worker)
            command = [python, worker, model, str(samples), str(group), str(out)]
            # On two cores GPTQModel would ask for one worker more than it grants itself.
            done = subprocess.run(
                command,
                cwd=folder,  # it leaves logs where it runs
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "GPTQMODEL_CPU_WORKERS": "2"},
            )
            if done.returncode:
                raise SystemExit(f"{rival.name} failed:\n{done.stderr}")
            took: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
            tensors = load_file(out)
        rows = []
        for scheme in schemes:
            program = self.planned(scheme)
            planned = planned_weights(program)
            codes = {
                entry: QuantizedTensor(
                    tensors[f"{weight.operator}|codes"],
                    tensors[f"{weight.operator}|scale"],
                    None,
                    weight.scheme.weight,
                )
                for entry, weight in planned.items()
            }
            put_codes(program, planned, codes)
            rows.append(self.score(rival.name, scheme, program, took["seconds"]))
        return rows

    def score(self, method: str, scheme: str, program: Program, seconds: float) -> Row:
        found: Evaluation = evaluate(
            _logits(program), self.tokens, reference=self.plain, window=self.options.window
        )
        assert found.comparison is not None
        assert found.kl is not None
        assert found.top1_agreement is not None
        row = Row(
            method,
            scheme,
            found.comparison.nll_difference,
            found.comparison.interval,
            found.kl,
            found.top1_agreement,
            seconds,
        )
        self.console.print(row)
        return row


def _logits(program: Program, *, keep: bool = False) -> Callable[[list[int]], np.ndarray]:
    """Return the logits of tokens as a function; with `keep` they are computed once."""
    parts = segments(program)
    schemes = {
        name: QuantScheme.parse(str(node.kwargs["scheme"]))
        for name, node in program.linears()
        if "scheme" in node.kwargs
    }
    weights: dict[str, torch.Tensor] = {}
    kept: dict[tuple[int, ...], np.ndarray] = {}
    (out,) = program.graph.output_node().all_input_nodes

    def fetch(name: str) -> torch.Tensor:
        if name not in weights:
            found = program.weights.get(name)
            weights[name] = found.dequantize() if isinstance(found, QuantizedTensor) else found
        return weights[name]

    def logits(tokens: list[int]) -> np.ndarray:
        key = tuple(tokens)
        if key in kept:
            return kept[key]
        values: dict[str, Any] = parts[0].order.inputs((torch.tensor(tokens),))
        with torch.no_grad():
            for part in parts:
                values = part.run(values, fetch, schemes)
        found: np.ndarray = values[out.name][0].numpy()
        if keep:
            kept[key] = found
        return found

    return logits


def _halves(text: str) -> tuple[str, str]:
    middle = text.index("\n", len(text) // 2) + 1
    return text[:middle], text[middle:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=4088, help="that are predicted")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--schemes", default="w4g64,w4a8g64", help="of one group size")
    parser.add_argument(
        "--methods", default="round to nearest;gptq", help="of: " + "; ".join(METHODS)
    )
    for rival in RIVALS:
        parser.add_argument(rival.option, default=sys.executable, help="Python that has it")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    schemes = options.schemes.split(",")
    torch.set_num_threads(2)

    comparison = Comparison(options)
    rows = [
        comparison.ours(method, scheme)
        for method in options.methods.split(";")
        for scheme in schemes
    ]
    for rival in RIVALS:
        python = getattr(options, rival.option.strip("-"))
        rows += comparison.rival(rival, str(Path(python).absolute()), schemes)

    table = Table(title=f"{options.model}, {options.samples} samples of {options.length} tokens")
    for column in ("method", "scheme", "rise of the NLL", "95 %", "KL", "top 1", "seconds"):
        table.add_column(column, justify="left" if column in ("method", "scheme") else "right")
    for row in rows:
        low, high = row.interval
        table.add_row(
            row.method,
            row.scheme,
            f"{row.rise:.4f}",
            f"{low:.4f} to {high:.4f}",
            f"{row.kl:.4f}",
            f"{row.top1:.3f}",
            f"{row.seconds:.0f}",
        )
    Console().print(table)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
