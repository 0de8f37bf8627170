"""Compile a model with a pipeline of ours, or time the artifact. See clock.py."""

from __future__ import annotations

from pathlib import Path

import qcompiler
from clock import StepEngine, main
from qcompiler.runtime import LanguageModel


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
    qcompiler.compile(source, output=target, pipeline=variant)


if __name__ == "__main__":
    main(prepare, Artifact)
