"""What watches a pipeline: each instrument wraps every pass and changes nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from qcompiler.core import shapes
from qcompiler.core.errors import UsageError, VerifyError
from qcompiler.core.interpreter import ProgramInterpreter, TorchLanguageModel
from qcompiler.core.pass_base import Pass
from qcompiler.core.printer import print_program
from qcompiler.core.program import Program
from qcompiler.core.reference import sqnr


class Instrument(Protocol):
    """A watcher of passes."""

    def around(self, step: Pass, program: Program) -> AbstractContextManager[None]:
        """Return what is open while `step` changes `program` and the result is verified."""


@dataclass
class Timer:
    """Measure how long each pass takes, its verification included."""

    seconds: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def around(self, step: Pass, program: Program) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds.append((step.name, time.perf_counter() - start))


@dataclass
class CheckShapes:
    """Work out the shape of every node again and compare it with what the pass wrote.

    The stage's own verifier runs after every pass in any case; this is for tests of passes.
    """

    @contextmanager
    def around(self, step: Pass, program: Program) -> Iterator[None]:
        yield
        check_shapes(program)


def check_shapes(program: Program) -> None:
    """Compare every `meta["val"]` with the shape and dtype that its operator gives.

    Raises:
        VerifyError: naming the node.
    """
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        with shapes.faking(program.graph):
            expected = shapes.infer(node.target, *node.args, **node.kwargs)
        if not _same(expected, node.meta["val"]):
            raise VerifyError(
                f"{node.name} says it is {_describe(node.meta['val'])}, "
                f"but its operator gives {_describe(expected)}"
            )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and len(a.shape) == len(b.shape)
            and all(_same(x, y) for x, y in zip(a.shape, b.shape, strict=True))
        )
    if isinstance(a, torch.SymInt) or isinstance(b, torch.SymInt):
        return str(a) == str(b)
    return bool(a == b)


def _describe(val: Any) -> str:
    if isinstance(val, tuple | list):
        return f"({', '.join(_describe(v) for v in val)})"
    if isinstance(val, torch.Tensor):
        return f"{val.dtype}[{', '.join(str(n) for n in val.shape)}]"
    return str(val)


class DumpIR:
    """Write the program to `000-<pass>.txt`, `001-…` after every pass that changed it.

    Files of an earlier dump are replaced.

    Raises:
        UsageError: the folder is no folder, or holds anything else.
    """

    _NAME = re.compile(r"\d{3}-[a-z0-9-]+\.txt")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._step = 0
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"cannot dump programs to {folder}: it is a file")
        present = sorted(folder.iterdir()) if folder.exists() else []
        other = [path.name for path in present if not self._NAME.fullmatch(path.name)]
        if other:
            raise UsageError(
                f"cannot dump programs to {folder}: it holds {other[0]}, which is no dump; "
                "name a folder that is empty or not there yet"
            )
        for path in present:
            path.unlink()

    @contextmanager
    def around(self, step: Pass, program: Program) -> Iterator[None]:
        before = dump(program)
        yield
        after = dump(program)
        if after != before:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{self._step:03}-{step.name}.txt"
            path.write_text(after, encoding="utf-8")
        self._step += 1


def dump(program: Program) -> str:
    """Return the program as text: its graph, then its plan."""
    plan = [f"plan {name}: {scheme}" for name, scheme in program.plan.items()]
    return print_program(program) + "".join(f"{line}\n" for line in plan)


Probe = Callable[[Program], torch.Tensor]
"""Runs a program on some input that is the same each time."""


class Drift:
    """Measure how far each pass takes the output of a probe from that of the program at first.

    Costs one forward a pass. `decibels` has the SQNR after each pass; nothing lost is infinite.
    """

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._reference: torch.Tensor | None = None
        self.decibels: list[tuple[str, float]] = []

    @contextmanager
    def around(self, step: Pass, program: Program) -> Iterator[None]:
        if self._reference is None:
            self._reference = self._probe(program)
        yield
        self.decibels.append((step.name, sqnr(self._reference, self._probe(program))))


def probe_tokens(tokens: Sequence[int]) -> Probe:
    """Return a probe for language models: the logits after every one of `tokens`."""
    return lambda program: TorchLanguageModel(program).logits(list(tokens))


def probe_inputs(*inputs: torch.Tensor) -> Probe:
    """Return a probe for plain modules: their output for `inputs`."""

    def run(program: Program) -> torch.Tensor:
        with torch.no_grad():
            out = ProgramInterpreter(program).run(*inputs)
        result: torch.Tensor = out[0] if isinstance(out, tuple | list) else out
        return result

    return run
