"""Run torch.export, and say in one sentence why it could not."""

from __future__ import annotations

import re
import traceback
import warnings
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
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(
                module, arguments, keywords, dynamic_shapes=dynamic_shapes, strict=False
            )
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"{what} cannot be captured: {_reason(error)}") from error


def functional(exported: ExportedProgram) -> ExportedProgram:
    """Return the same program with operators that write in place replaced, and nothing else.

    Raises:
        CaptureError: what it writes to cannot be followed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decomposed: ExportedProgram = exported.run_decompositions({})
            return decomposed
    except Exception as error:
        raise CaptureError(f"the model cannot be captured: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    sentence = re.split(r"(?<=[.!?]) |For more information|Caused by", text)[0].rstrip(" .")
    return f"{sentence} {_place(error)}".rstrip()


def _place(error: Exception) -> str:
    """Name the innermost line of code that is not torch's own."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "/torch/" in frame.filename or frame.filename == __file__ or "<" in frame.filename:
            continue
        return f"({frame.filename}:{frame.lineno}: {frame.line})"
    return ""
