"""Load and run an artifact; needs neither torch nor the compiler."""

from __future__ import annotations

from qcompiler.runtime.compiled_module import CompiledModule
from qcompiler.runtime.generation import Generation
from qcompiler.runtime.language_model import LanguageModel
from qcompiler.runtime.loading import load
from qcompiler.runtime.session import Session

__all__ = ["CompiledModule", "Generation", "LanguageModel", "Session", "load"]
