"""Time this compiler and the engines people use, on one model, in one run.

    python benchmarks/side_by_side.py [--rounds 3] [--json FILE]

Engines take turns, each in a process of its own, so that a drift of the machine's speed meets all
of them; the best and the median over all rounds are shown. Rivals that are not installed are left
out, with the command that installs them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import qcompiler
from qcompiler.packaged import packaged_file

WORKER = Path(__file__).with_name("workers.py")
PIPELINES = ("w4a8", "w8a8", "float")
RIVALS = {
    "torch-fp32": ("torch", "torch==2.13.0"),
    "torch-bf16": ("torch", "torch==2.13.0"),
    "llama.cpp-q4_0": ("llama_cpp", "llama-cpp-python"),
    "llama.cpp-q8_0": ("llama_cpp", "llama-cpp-python"),
}


def run_worker(engine: str, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time one engine once, in a fresh process."""
    command = [sys.executable, str(WORKER), engine, model, "--repeats", "3"]
    for name in ("prompt_tokens", "generate_tokens", "threads"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{engine} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def summarise(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Combine the rounds of one engine: best of all, median of medians."""
    summary: dict[str, Any] = {
        "peak_memory_bytes": max(r["peak_memory_bytes"] for r in rounds),
    }
    for key in ("prefill_tokens_per_s", "decode_tokens_per_s"):
        summary[key] = {
            "best": max(r[key]["best"] for r in rounds),
            "median": statistics.median(r[key]["median"] for r in rounds),
        }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--generate-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console(stderr=True)

    source = str(packaged_file(options.model))
    engines: dict[str, tuple[str, str]] = {}
    for pipeline in PIPELINES:
        folder = Path("build") / f"{options.model}.{pipeline}.qc"
        folder.parent.mkdir(exist_ok=True)
        console.print(f"compiling {folder}")
        qcompiler.compile(options.model, output=folder, pipeline=pipeline)
        engines[f"qcompiler {pipeline}"] = ("qcompiler", str(folder))
    for name, (module, package) in RIVALS.items():
        if importlib.util.find_spec(module) is None:
            console.print(f"{name} is left out; install it with: pip install {package}")
        else:
            engines[name] = (name, source)

    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    for number in range(options.rounds):
        for name, (engine, model) in engines.items():
            console.print(f"round {number + 1}: {name}")
            rounds[name].append(run_worker(engine, model, options))
    results = {name: summarise(found) for name, found in rounds.items()}

    table = Table(title=f"{options.model}, {options.threads} threads, tokens/s best (median)")
    table.add_column("engine")
    for column in (
        f"prefill of {options.prompt_tokens}",
        f"decode of {options.generate_tokens}",
        "peak memory",
    ):
        table.add_column(column, justify="right")
    for name, result in results.items():
        prefill, decode = result["prefill_tokens_per_s"], result["decode_tokens_per_s"]
        table.add_row(
            name,
            f"{prefill['best']:.0f} ({prefill['median']:.0f})",
            f"{decode['best']:.1f} ({decode['median']:.1f})",
            f"{result['peak_memory_bytes'] / 1e6:.0f} MB",
        )
    Console().print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
