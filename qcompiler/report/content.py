"""The report of a compilation: what it holds, how it is written, and how it is read again.

`docs/report.md` says what passes record. Reading is tolerant: what is missing or has another shape
is left out of its section and kept among the records, so that a page can be made of any report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

REPORT = "report.json"
TIMES = "times.json"
PAGE = "report.html"
SCHEMA = 1

Records = dict[str, dict[str, JsonValue]]
"""Pass → key → value."""

ByScheme = dict[str, dict[str, float | None]]
"""Operator → scheme → figure."""


class Part(BaseModel):
    """What the parts of a report have in common: figures that nobody knows are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class CalibrationFacts(Part):
    """What a model was run on to be measured; tokens only where its input is tokens."""

    source: str
    generated: bool = False
    samples: int
    tokens: int | None = None
    distinct_tokens: int | None = None
    vocabulary: int | None = None
    digest: str = ""


class OperatorFacts(Part):
    """An operator with a weight [n, k], as the artifact has it; no scheme means float."""

    shape: tuple[int, ...]
    scheme: str | None = None
    bits_per_weight: float

    @property
    def weights(self) -> int:
        return math.prod(self.shape)


class Sensitivity(Part):
    """What each operator costs in quality, by scheme."""

    step: str
    metric: str = ""
    unit: str = ""
    loss: ByScheme = {}


class Costs(Part):
    """What each operator costs in bytes and seconds, by scheme."""

    step: str
    method: str = ""
    bytes: ByScheme = {}
    decode: ByScheme = {}
    prefill: ByScheme = {}


class Point(Part):
    """One plan for all operators."""

    loss: float
    bits_per_weight: float | None = None
    bytes: float | None = None
    decode_ms: float | None = None
    prefill_ms: float | None = None


class Allocation(Part):
    """The plan that an allocator chose, and those that it could have chosen."""

    step: str
    unit: str = ""
    objective: float | None = None
    bound: float | None = None
    gap: float | None = None
    budgets: dict[str, float | None] = {}
    prices: dict[str, float | None] = {}
    front: list[Point] = []
    chosen: Point | None = None
    others: dict[str, list[Point]] = {}


class OperatorRecord(Part):
    """What a pass says of one operator.

    `before` and `after` are its errors, rounded to nearest and as it was chosen; the rest is what
    its inputs were like and what was done about it.
    """

    before: float | None = None
    after: float | None = None
    method: str = ""
    scheme: str = ""
    damping: float | None = None
    dead_columns: int | None = None
    tokens: int | None = None
    condition: float | None = None


class BlockError(Part):
    """How far the output of a block is from its float self, at first and in the end."""

    block: int
    before: float | None = None
    after: float | None = None
    iterations: int | None = None
    best: int | None = None


class WholeTraining(Part):
    """How the loss fell when all was trained together: (step, loss) while training, and held out.

    `held_out` is of samples that are not trained on; `best` the step of the iterate that was kept.
    """

    loss: str = ""
    steps: int
    best: int
    before: float
    after: float
    held_out: list[tuple[float, float | None]] = []
    curve: list[tuple[float, float | None]] = []


class Details(Part):
    """What a pass says of operators and blocks, one by one."""

    step: str
    measure: str = ""
    operators: dict[str, OperatorRecord] = {}
    blocks_measure: str = ""
    blocks: list[BlockError] = []
    curves: list[list[float | None]] = []
    whole: WholeTraining | None = None


class Report(BaseModel):
    """Everything said about a compilation beside the manifest. `steps` are (name, seconds)."""

    model_config = ConfigDict(extra="ignore")

    pipeline: list[dict[str, JsonValue]] = Field(default_factory=list)
    notes: dict[str, list[str]] = Field(default_factory=dict)
    calibration: CalibrationFacts | None = None
    operators: dict[str, OperatorFacts] = Field(default_factory=dict)
    records: Records = Field(default_factory=dict)
    steps: list[tuple[str, float]] = Field(default_factory=list)
    seconds: Records = Field(default_factory=dict)

    def sensitivities(self) -> list[Sensitivity]:
        """Return what passes said of operators' sensitivity."""
        return [found for found in self._read(Sensitivity) if found.loss]

    def costs(self) -> list[Costs]:
        """Return what passes said of operators' costs."""
        found = self._read(Costs)
        return [costs for costs in found if costs.bytes or costs.decode or costs.prefill]

    def allocations(self) -> list[Allocation]:
        """Return what passes said of how bits were shared out."""
        return [found for found in self._read(Allocation) if found.front or found.chosen]

    def details(self) -> list[Details]:
        """Return what passes said of single operators and blocks."""
        return [d for d in self._read(Details) if d.operators or d.blocks or d.whole]

    def rest(self) -> Records:
        """Return the records that no section understands."""
        result: Records = {}
        for name, records in self._merged():
            kinds = (Sensitivity, Costs, Allocation, Details)
            known = {key for kind in kinds for key in _fitting(kind, records)}
            if left := {key: value for key, value in records.items() if key not in known}:
                result[name] = left
        return result

    def _merged(self) -> Iterator[tuple[str, dict[str, JsonValue]]]:
        for name in dict.fromkeys([*self.records, *self.seconds]):
            yield name, self.records.get(name, {}) | self.seconds.get(name, {})

    def _read(self, kind: type[_Kind]) -> list[_Kind]:
        return [
            kind.model_validate({"step": name, **_fitting(kind, records)})
            for name, records in self._merged()
        ]


_Kind = TypeVar("_Kind", bound=Part)


def _fitting(kind: type[Part], records: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the records that are fields of `kind` and have the right shape."""
    fields = kind.model_fields.keys() & records.keys() - {"step"}
    return {name: records[name] for name in sorted(fields) if _fits(kind, name, records[name])}


def _fits(kind: type[Part], name: str, value: JsonValue) -> bool:
    try:
        kind.model_validate({"step": "", name: value})
    except ValidationError:
        return False
    return True


def encode(content: Mapping[str, object]) -> bytes:
    """Write a report's content as JSON; what JSON cannot say is null, or its text.

    >>> print(encode({"bits": {4: float("nan")}}).decode().strip())
    {
     "bits": {
      "4": null
     }
    }
    """
    text = json.dumps(plain(content), indent=1, ensure_ascii=False)
    return (text + "\n").encode()


def plain(value: object) -> JsonValue:
    """Return a value as JSON holds it."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): plain(entry) for key, entry in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(entry) for entry in value]
    # Scalars of numpy and torch.
    item = getattr(value, "item", None)
    return plain(item()) if callable(item) else str(value)


def parse(content: Mapping[str, Any], times: Mapping[str, Any] | None = None) -> Report:
    """Read a report's content, and that of its times; a part that cannot be read is left out."""
    times = times or {}
    given = {**content, "steps": times.get("steps"), "seconds": times.get("records")}
    kept: dict[str, Any] = {}
    for name in Report.model_fields:
        value = given.get(name)
        if value is None:
            continue
        try:
            Report.model_validate({name: value})
        except ValidationError:
            continue
        kept[name] = value
    return Report.model_validate(kept)


def read_report(folder: Path) -> Report:
    """Read the report of an artifact; parts that are missing or damaged are left out."""
    return parse(_read(folder / REPORT), _read(folder / TIMES))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
