"""Run torch.export, and say in one sentence why it could not."""

from __future__ import annotations

import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from qcompiler.core.errors import CaptureError


def export(
    module: nn.Module,
    arguments: tuple[Any, ...],
    dynamic_shapes: Any,
    *,
    keywords: dict[str, Any] | None = None,
    what: str,
) -> ExportedProgram:
    """Export a module without looking at its data.

    Raises:
        CaptureError: naming the operator or the line of the module's code that is in the way.
    """
    try:
        with torch.no_grad(), _quietly(), _errors_set_aside(module):
            return torch.export.export(
                module, arguments, keywords, dynamic_shapes=dynamic_shapes, strict=False
            )
    except CaptureError:
        raise
    except _SetAside as aside:
        error = aside.error
        raise CaptureError(f"{what} cannot be captured: {_reason(error)}") from error
    except Exception as error:
        raise CaptureError(f"{what} cannot be captured: {_reason(error)}") from error


def functional(exported: ExportedProgram) -> ExportedProgram:
    """Return the same program with operators that write in place replaced, and nothing else.

    Raises:
        CaptureError: what it writes to cannot be followed.
    """
    try:
        with _quietly():
            decomposed: ExportedProgram = exported.run_decompositions({})
            return decomposed
    except Exception as error:
        raise CaptureError(f"the model cannot be captured: {_reason(error)}") from error


_EXPORTING: ContextVar[bool] = ContextVar("exporting", default=False)

# Both print dumps of what they were doing before they raise an error that says it.
for _name in ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor"):
    logging.getLogger(_name).addFilter(lambda record: not _EXPORTING.get())


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what torch logs and warns of while it traces to itself; its errors say it again."""
    token = _EXPORTING.set(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _EXPORTING.reset(token)


class _SetAside(Exception):
    """Carries an error of the model's code through torch.export."""

    def __init__(self, error: RuntimeError) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def _errors_set_aside(module: nn.Module) -> Iterator[None]:
    """Have a module's errors pass through torch.export, which prints its graph for some of them."""
    plain = module.forward
    own = vars(module).get("forward")

    @wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        try:
            return plain(*args, **kwargs)
        except RuntimeError as error:
            raise _SetAside(error) from error

    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    if any("data-dependent" in line for line in lines):
        sentence = "what it does depends on values that are not known before it runs"
    elif broken := [line for line in lines if line.startswith("  - ")]:
        names = dict.fromkeys(re.findall(r"Not all values of (\w+)|You marked (\w+)", broken[0])[0])
        sentence = f"size {''.join(names)} cannot be dynamic, since {_plain(broken[0])}"
    else:
        text = " ".join(" ".join(lines).split())
        sentence = re.split(r"(?<=[.!?]) (?=[A-Z])", text)[0].rstrip(" .!")
    return f"{sentence} {_place(error)}".rstrip()


def _plain(violation: str) -> str:
    """Say a broken constraint in fewer words than torch does."""
    text = violation.removeprefix("  - ").split(". If you're", maxsplit=1)[0].rstrip(".")
    if "specialized it to be a constant" in text:
        return f"the model fixes it to {text.rpartition('(')[2].rstrip(')')}"
    return f"it holds only where {text.rpartition('generated guard ')[2]}"


def _place(error: Exception) -> str:
    """Name the innermost line of code that is not torch's own, as "(file.py:12: code)"."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "/torch/" in frame.filename or frame.filename == __file__ or "<" in frame.filename:
            continue
        # The call of export itself is in this package; the model's code is not.
        if "/qcompiler/frontend/" in frame.filename:
            return ""
        return f"({frame.filename}:{frame.lineno}: {frame.line})"
    return ""
