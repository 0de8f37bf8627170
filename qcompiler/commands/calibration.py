"""What `compile` and `evaluate` are told of calibration, checked step by step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.core.errors import UsageError
from qcompiler.core.text_file import read_text

if TYPE_CHECKING:
    from qcompiler.core.pass_base import Pass

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGT", start=1)}


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Options as they were written; `max_ram` as text."""

    files: tuple[Path, ...] = ()
    samples: int | None = None
    sequence_length: int | None = None
    seed: int = 0
    max_ram: str | None = None

    def check(self) -> None:
        """Find what is wrong with them by themselves; loads nothing."""
        for file in self.files:
            read_text(file)
        if self.max_ram is not None:
            parse_bytes(self.max_ram)

    def check_against(self, steps: Sequence[Pass]) -> None:
        """Find what does not go with the passes of the pipelines; loads torch."""
        from qcompiler.calibration import request_calibration

        request_calibration(
            steps,
            self.files or None,
            samples=self.samples,
            sequence_length=self.sequence_length,
            seed=self.seed,
        )

    def keywords(self) -> dict[str, Any]:
        """Return them as the functions of `qcompiler.api` take them."""
        return {
            "calibration": self.files or None,
            "samples": self.samples,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
            "max_ram": None if self.max_ram is None else parse_bytes(self.max_ram),
        }


def parse_bytes(text: str) -> int:
    """Read a size such as 2G, 1.5GB or 512MiB.

    >>> parse_bytes("2G"), parse_bytes("1.5 MB"), parse_bytes("1GiB"), parse_bytes("0")
    (2000000000, 1500000, 1073741824, 0)
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kKMGT]i?)?B?", text.strip())
    if found is None:
        raise UsageError(f"--max-ram {text}: write a size such as 2G or 512M")
    number, unit = found.groups(default="")
    return round(float(number) * _UNITS[unit.replace("k", "K")])
