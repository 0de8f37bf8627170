"""`make demo`: compile SmolLM2-135M to 4 bits, ask it something, and compare it with torch."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import qcompiler
from engine_list import chosen
from engine_models import ModelFiles
from engines import time_once
from qcompiler.packaged import packaged_file

MODEL = "smollm2-135m"
ARTIFACT = Path("build") / f"{MODEL}.w4a8.qc"
QUESTION = "What is the capital of France?"
TOKENS = 2048


def command(*arguments: str) -> None:
    """Run the command line as a user would, and show what was typed."""
    print(
        "\n$ qcompiler " + " ".join(a if " " not in a else f'"{a}"' for a in arguments), flush=True
    )
    subprocess.run([sys.executable, "-m", "qcompiler.cli", *arguments], check=True)


def sample_text() -> str:
    """Return the text to score: WikiText-2 where it is at hand, else the project's own pages."""
    if folder := os.environ.get("QCOMPILER_TEST_DATA"):
        text = (Path(folder) / "wikitext2" / "valid.txt").read_text(encoding="utf-8")
        return text[len(text) // 2 :]
    pages = sorted(Path("docs").rglob("*.md"))
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def main() -> None:
    ARTIFACT.parent.mkdir(exist_ok=True)
    command("compile", MODEL, "-o", str(ARTIFACT), "--pipeline", "w4a8")
    command("run", str(ARTIFACT), "--prompt", QUESTION, "--temperature", "0")

    print("\nmeasuring quality and speed …", flush=True)
    text = sample_text()
    quality = qcompiler.evaluate(ARTIFACT, text=text, reference=MODEL, tokens=TOKENS)
    assert quality.comparison is not None
    assert quality.kl is not None
    source = packaged_file(MODEL)
    (ours,), (plain,) = chosen("qcompiler w4a8"), chosen("torch float32")
    folder = ModelFiles(MODEL, None, ARTIFACT.parent, print).folder()
    rows = [
        ("qcompiler w4a8", ARTIFACT, quality.nll, time_once(ours, ARTIFACT)),
        ("torch float32", source, quality.comparison.reference_nll, time_once(plain, folder)),
    ]
    table = Table(title=f"{MODEL}, 2 threads")
    for name in ("", "size on disk", "perplexity", "prefill of 512, tokens/s", "decode, tokens/s"):
        table.add_column(name, justify="right" if name else "left")
    for name, path, nll, speed in rows:
        size = (
            sum(f.stat().st_size for f in path.rglob("*")) if path.is_dir() else path.stat().st_size
        )
        table.add_row(
            name,
            f"{size / 1e6:.0f} MB" + ("" if path.is_dir() else " (GGUF Q4_1)"),
            f"{math.exp(nll):.2f}",
            f"{max(speed['contexts']['512']['prefill_tokens_per_s']):.0f}",
            f"{max(speed['contexts']['512']['decode_tokens_per_s']):.1f}",
        )
    Console().print(table)
    print(
        f"{quality.tokens} tokens scored; KL divergence from float {quality.kl:.3f}, "
        f"same first choice {quality.top1_agreement:.0%}. Both are re-quantised from Q4_1 weights."
    )


if __name__ == "__main__":
    main()
