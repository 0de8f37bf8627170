"""`qcompiler evaluate`: how well a model or an artifact predicts a text."""

from __future__ import annotations

import sys
from pathlib import Path

import qcompiler
from qcompiler.commands.output import print_json, print_table
from qcompiler.commands.progress import watch
from qcompiler.core.errors import UsageError
from qcompiler.packaged import check_found
from qcompiler.presets import find_pipeline


def evaluate(
    model: str,
    *,
    text: str,
    reference: str | None,
    pipeline: str | None,
    tokens: int | None,
    window: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print likelihood, perplexity and, given a reference, the distance to it."""
    # What is wrong with the request should show before seconds are spent on loading torch and TVM.
    content = read_text(text)
    for name in (model, reference):
        if name is not None:
            check_found(name)
    if pipeline is not None:
        find_pipeline(pipeline)
        from qcompiler.planning import plan_request

        plan_request(pipeline)
    with watch(quiet=quiet) as progress:
        found = qcompiler.evaluate(
            model,
            text=content,
            reference=reference,
            pipeline=pipeline,
            tokens=tokens,
            window=window,
            progress=progress,
        )
    if as_json:
        print_json(
            {
                "nll": found.nll,
                "perplexity": found.perplexity,
                "tokens": found.tokens,
                "kl": found.kl,
                "top1_agreement": found.top1_agreement,
            }
        )
        return
    rows = [
        ("negative log-likelihood", f"{found.nll:.4f}", f"nats per token, ± {found.nll_error:.4f}"),
        ("perplexity", f"{found.perplexity:.3f}", ""),
        ("tokens", f"{found.tokens}", ""),
    ]
    if found.kl is not None:
        rows.append(("KL divergence from the reference", f"{found.kl:.5f}", "nats per token"))
    if found.top1_agreement is not None:
        rows.append(("same first choice as the reference", f"{found.top1_agreement:.1%}", ""))
    print_table(("measure", "value", "unit"), rows, numbers=("value",))


def read_text(name: str) -> str:
    """Return what a UTF-8 text file holds, or standard input for `-`."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"--text {name}: cannot read it: {error.strerror}") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"--text {name}: it is not UTF-8 text") from error
    if not text.strip():
        raise UsageError(f"--text {name}: there is no text in it")
    return text
