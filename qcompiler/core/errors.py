"""Errors a user can act on, and the search for the name they probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QCompilerError(Exception):
    """Root of every error that is the user's to mend; its text is one sentence."""


class UsageError(QCompilerError):
    """Something was asked for in a way that cannot be understood (exit status 2)."""


class ConfigError(UsageError):
    """A pipeline file, a preset or an option is wrong."""


class CaptureError(QCompilerError):
    """A model cannot be read or turned into a graph."""


class UnsupportedError(QCompilerError):
    """A well-formed request has no implementation on this target."""


class VerifyError(QCompilerError):
    """A program breaks a rule of its stage."""


class ArtifactError(QCompilerError):
    """An artifact is damaged, incomplete, newer than this runtime or built for another machine."""


def suggest(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that `name` is unknown, name the nearest known one, and list them all.

    >>> suggest("pass", "quantize-rnt", ["quantize-rtn", "legalize"])
    "unknown pass 'quantize-rnt'; did you mean 'quantize-rtn'? known: legalize, quantize-rtn"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    return f"unknown {kind} '{name}'{hint} known: {', '.join(names)}"
