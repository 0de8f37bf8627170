"""Time this compiler and the engines people use, on one model, in one run.

    python benchmarks/engines.py [--contexts 512,2048] [--threads 1,2] [--json FILE]

Engines take turns, each in a process of its own, so that a drift of the machine's speed meets all
of them; the best and the median over all rounds are shown. A rate of decoding is that of
`--generate` tokens after the prompt, each the most likely one. The first token is that of a prompt
of 8, from the start of the process; memory is the most the process held.

Rivals that are not installed are left out, with the command that installs them; each may live in
an environment of its own, whose Python is told with --llama-cpp, --openvino or --torchao. What an
engine reads is kept in build/ for the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from engine_list import ENGINES, FAMILIES, Engine, chosen, present
from engine_models import SHAPES, ModelFiles
from engine_results import picture, summarise, table
from qcompiler.commands.picture import check_picture, write_picture
from qcompiler.core.errors import QCompilerError
from qcompiler.packaged import PACKAGED

BUILD = Path("build")

DEFAULT = "qcompiler w?a8,qcompiler float,llama.cpp *,openvino *,torch *float*"
"""Those that are ready in seconds: what torch compiles takes each process up to minutes."""


def time_once(
    engine: Engine,
    path: Path,
    *,
    python: str = sys.executable,
    contexts: Sequence[int] = (512,),
    generate: int = 128,
    threads: int = 2,
    repeats: int = 2,
) -> dict[str, Any]:
    """Time an engine in a fresh process; return what `engine_workers/clock.py` prints."""
    command = [python, str(engine.worker), "time", engine.variant, str(path.resolve())]
    command += ["--contexts", ",".join(map(str, contexts)), "--generate", str(generate)]
    command += ["--threads", str(threads), "--repeats", str(repeats)]
    # What torch compiles is kept for the next process, as other engines keep what they prepare.
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(BUILD.resolve() / "torchinductor")}
    done = subprocess.run(
        [*command, "--started", repr(time.time())],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **cache, **engine.family.environment},
    )
    if done.returncode:
        raise SystemExit(f"{engine.name} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def numbers(text: str) -> list[int]:
    """Read whole numbers that commas part.

    >>> numbers("512,2048")
    [512, 2048]
    """
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' has a number that is less than 1")
    return found


def count(text: str) -> int:
    """Read one number, of 1 or more."""
    (found,) = numbers(text)
    return found


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", default="smollm2-135m", choices=PACKAGED)
    what.add_argument("--shape", choices=SHAPES, help="random weights instead of a model")
    parser.add_argument("--contexts", type=numbers, default=[512], help="tokens of the prompts")
    parser.add_argument("--generate", type=count, default=128, help="tokens after each prompt")
    parser.add_argument("--threads", type=numbers, default=[2])
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--repeats", type=count, default=2, help="in each round")
    parser.add_argument(
        "--engines",
        default=DEFAULT,
        help="names, with * for any part, commas between; without it '%(default)s' of: "
        + ", ".join(engine.name for engine in ENGINES),
    )
    parser.add_argument("--recompile", action="store_true", help="our artifacts, even if there")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="an .svg or .png file of bars")
    for family in FAMILIES[1:]:
        parser.add_argument(
            family.option, dest=family.name, default=sys.executable, help="Python that has it"
        )
    return parser.parse_args(arguments)


def main() -> None:
    options = read_options()
    console = Console(stderr=True, highlight=False)
    if options.picture is not None:
        check_picture("--picture", options.picture)
    files = ModelFiles(options.model, options.shape, BUILD, console.print)
    longest, limit = max(options.contexts) + options.generate, files.max_context
    if longest > limit:
        raise SystemExit(
            f"{max(options.contexts)} + {options.generate} tokens do not fit the context of "
            f"{files.name}, {limit}; ask for {limit - options.generate} at most"
        )
    # A link to a Python is not followed: it would lead out of its environment.
    given = vars(options)
    pythons = {f.name: str(given.get(f.name, sys.executable)) for f in FAMILIES}
    engines = present(chosen(options.engines), pythons, console.print)
    if not engines:
        raise SystemExit("no engine is left to be timed")
    paths = {}
    for engine in engines:
        ours = engine.family.name == "qcompiler"
        anew = options.recompile and ours
        paths[engine] = files.prepared(engine, pythons[engine.family.name], anew=anew)

    found: dict[int, dict[str, list[dict[str, Any]]]] = {
        threads: {engine.name: [] for engine in engines} for threads in options.threads
    }
    for number in range(options.rounds):
        for threads in options.threads:
            for engine in engines:
                console.print(f"round {number + 1}, {threads} threads: {engine.name}")
                once = time_once(
                    engine,
                    paths[engine],
                    python=pythons[engine.family.name],
                    contexts=options.contexts,
                    generate=options.generate,
                    threads=threads,
                    repeats=options.repeats,
                )
                found[threads][engine.name].append(once)

    results = {
        f"{files.name}, {threads} thread{'s' * (threads > 1)}": {
            name: summarise(rounds) for name, rounds in by_engine.items()
        }
        for threads, by_engine in found.items()
    }
    for title, summaries in results.items():
        Console().print(table(summaries, title))
    if options.json is not None:
        about = {
            "model": files.name,
            "generate": options.generate,
            "rounds": options.rounds,
            "repeats": options.repeats,
            "machine": platform.machine(),
        }
        by_threads = {
            str(threads): summaries
            for threads, summaries in zip(found, results.values(), strict=True)
        }
        text = json.dumps({**about, "threads": by_threads}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    if options.picture is not None:
        write_picture(picture(results), options.picture)


if __name__ == "__main__":
    try:
        main()
    except QCompilerError as error:
        raise SystemExit(str(error)) from None
