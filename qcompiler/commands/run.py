"""`qcompiler run`: an answer to a prompt, or a conversation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from qcompiler.commands.output import say
from qcompiler.core.errors import UsageError
from qcompiler.runtime import Generation, LanguageModel, load

Generate = Callable[[str | Sequence[dict[str, str]]], Generation]
"""Starts to answer a prompt or a conversation with the options of the command line."""


def run(
    artifact: Path,
    *,
    prompt: str | None,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float,
    repetition_penalty: float,
    seed: int | None,
    raw: bool,
    threads: int | None,
) -> None:
    """Answer `prompt`, standard input for `-`, or what a person types."""
    if prompt is None and not sys.stdin.isatty():
        raise UsageError(
            "there is no prompt; give --prompt TEXT, or --prompt - to read it from standard input"
        )
    if prompt == "-":
        prompt = sys.stdin.read()
    model = load(artifact, threads=threads)
    if not isinstance(model, LanguageModel):
        raise UsageError(
            f"{artifact} is no language model; call it from Python: qcompiler.load('{artifact}')"
        )

    def generate(text: str | Sequence[dict[str, str]]) -> Generation:
        return model.generate(
            text,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            raw=raw,
        )

    with model:
        if prompt is not None:
            show(generate(prompt))
        else:
            say(f"{model.name} answers. An empty line is ignored, /clear forgets, Ctrl-D ends.")
            chat(generate, remember=not raw and model.manifest.model.chat_template is not None)


def show(answer: Generation) -> str:
    """Print an answer as it comes, and why it ended if the model did not end it; return it."""
    text = ""
    for piece in answer:
        text += piece
        print(piece, end="", flush=True)
    if not text.endswith("\n"):
        print(flush=True)
    if answer.finish_reason != "stop":
        say(f"({answer.explanation})")
    if sys.stderr.isatty() and answer.decode_s > 0:
        speed = len(answer.tokens) / answer.decode_s
        say(f"({len(answer.tokens)} tokens, {speed:.0f} tokens/s)")
    return text


def chat(generate: Generate, *, remember: bool) -> None:
    """Answer line by line until the input ends; Ctrl-C cuts an answer short.

    A model that takes no conversations (`remember` is false) sees each line by itself.
    """
    messages: list[dict[str, str]] = []
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if not line:
            continue
        if line == "/clear":
            messages.clear()
            continue
        asked = [*messages, {"role": "user", "content": line}]
        try:
            answer = show(generate(asked if remember else line))
        except UsageError as error:
            say(f"error: {error}")
            continue
        except KeyboardInterrupt:
            # The question is forgotten with its unfinished answer.
            print()
            continue
        messages = [*asked, {"role": "assistant", "content": answer}]
