"""How far a program has come on its way to machine code."""

from __future__ import annotations

from enum import Enum


class Stage(Enum):
    """What a program's verifier guarantees; docs/ir.md spells each stage out."""

    FLOAT = "float"
    PLANNED = "planned"
    FAKE_QUANTIZED = "fake-quantized"
    QUANTIZED = "quantized"
    LEGAL = "legal"

    def __str__(self) -> str:
        return self.value
