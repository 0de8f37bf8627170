"""Compile a model with a pipeline of ours, or time the artifact. See clock.py."""

from __future__ import annotations

from pathlib import Path

import qcompiler
from clock import StepEngine, main
from qcompiler.runtime import LanguageModel

RULES = """[
    {{ scheme = "{}" }},
    {{ kind = "embedding", scheme = "w8a8g32" }},
    {{ kind = "head", scheme = "w8a8g32" }},
]"""
"""Those of the preset, with another group."""


class Artifact(StepEngine):
    """A session of a compiled model."""

    def __init__(self, variant: str, path: Path, threads: int, room: int) -> None:
        model = qcompiler.load(path, threads=threads)
        assert isinstance(model, LanguageModel)
        self.session = model.new_session()

    def prefill(self, prompt: list[int]) -> int:
        self.session.reset()
        return int(self.session.prefill(prompt).argmax())

    def decode(self, token: int) -> int:
        return int(self.session.decode(token).argmax())


def prepare(variant: str, source: str, target: Path) -> None:
    scheme, _, instructions = variant.partition("-")
    pipeline, _, group = scheme.partition("g")
    qcompiler.compile(
        source,
        output=target,
        pipeline=pipeline,
        settings=[f"set-bits.rules={RULES.format(scheme)}"] if group else [],
        target="x86-64-v3" if instructions == "avx2" else None,
    )


if __name__ == "__main__":
    main(prepare, Artifact)
