"""The manifest of an artifact: what was compiled, how, for which machine, and what it needs to run.

Dataclasses and a small reader, not pydantic, whose import alone would take longer than loading a
model of a hundred million weights.
"""

from __future__ import annotations

import dataclasses
import json
import types
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from qcompiler.core.artifact.costs import FunctionCosts, LimitFacts
from qcompiler.core.artifact.step import StepFacts
from qcompiler.core.errors import ArtifactError
from qcompiler.core.kv_format import row_of

SCHEMA = 4
"""Version of the manifest's layout; raised when an older runtime could misread a newer one."""

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
"""What JSON can hold."""

Kind = Literal["causal-lm", "module"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, dtype (as numpy names it) and shape of a tensor; a size that varies has a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """One cache tensor, [1, heads, context, row], context being as long as needed.

    A row holds one head of one token: `head_dim` float32 numbers, or bytes as `format` has them
    (see `KvFormat`).
    """

    heads: int
    head_dim: int
    dtype: str = "float32"
    format: str = ""

    @property
    def row(self) -> int:
        """Numbers of a row."""
        return row_of(self.format, self.head_dim)[0]

    @property
    def token_bytes(self) -> int:
        """Bytes that it keeps of a token."""
        return self.heads * self.row * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What running a model takes to know of it; the rest of a causal LM's is in its functions."""

    name: str
    architecture: str
    source: str
    vocab_size: int = 0
    max_context: int = 0
    kv: tuple[CacheSpec, ...] = ()
    """Every cache tensor, in the order in which the functions take them: k 0, v 0, k 1, v 1, …"""
    end_tokens: tuple[int, ...] = ()
    """Tokens that end an answer."""
    begin_token: int | None = None
    """Token that a text begins with, where the model was trained so."""
    chat_template: str | None = None
    """Jinja template that turns messages into one text, as Hugging Face writes them."""
    special_tokens: dict[str, str] = field(default_factory=dict)
    """Tokens by the names that chat templates use: bos_token, eos_token, …"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetFacts:
    """The machine compiled for; `features` are named as Linux's /proc/cpuinfo names them."""

    name: str
    arch: str
    features: tuple[str, ...]
    compute_capability: int = 0
    """Of an NVIDIA GPU, 80 for 8.0: its tensors lie there. 0: everything runs on the processor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelChoice:
    """The kernel that serves an operator, and why it was picked."""

    kernel: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryFunction:
    """What a compiled function takes and gives, its caches and weights left out.

    `bounds` holds the smallest and the largest value of a size that varies; None is no limit.
    `rows` holds how many rows the table has that an input's numbers are looked up in.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    bounds: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    step: StepFacts | None = None
    """Given where the function is called as a whole, and in no other way."""
    costs: FunctionCosts | None = None
    """What its kernels take; artifacts of earlier compilers do not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """Content hash (hexadecimal) and size of a file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything known about an artifact.

    Raises ArtifactError when its parts do not fit together.
    """

    kind: Kind
    compiler: str
    """Version of qcompiler that wrote the artifact."""
    model: ModelFacts
    target: TargetFacts
    pipeline: tuple[Plain, ...] = ()
    """The steps with all their options, as plain data."""
    plan: dict[str, str] = field(default_factory=dict)
    """Operator → scheme."""
    kernels: dict[str, KernelChoice] = field(default_factory=dict)
    """Operator → kernel."""
    functions: dict[str, EntryFunction] = field(default_factory=dict)
    weights: tuple[TensorSpec, ...] = ()
    """Packed weights, in the order in which the functions take them."""
    requires: dict[str, str] = field(default_factory=dict)
    """Distribution → version that the machine code was built with."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Counts whose names end in their unit: weight_bytes, …"""
    measured: dict[str, float] = field(default_factory=dict)
    """What the compiler measured: SQNR in dB, …"""
    limits: dict[str, LimitFacts] = field(default_factory=dict)
    """What is measured for the machine's limits: "stream", "int8", "float32"."""
    files: dict[str, FileRecord] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        needed = ("prefill", "decode") if self.kind == "causal-lm" else ("forward",)
        for name in needed:
            if name not in self.functions:
                raise ArtifactError(f"a {self.kind} artifact needs the function '{name}'")
        if self.kind == "causal-lm" and (self.model.vocab_size < 1 or self.model.max_context < 1):
            raise ArtifactError("a causal-lm artifact needs a vocabulary and a context size")
        names = [spec.name for spec in self.weights]
        if len(set(names)) != len(names):
            raise ArtifactError("two weights of an artifact have the same name")


class _WrongType(Exception):
    """A value of the manifest has another type than its field."""


def to_json(manifest: Manifest) -> str:
    """Write a manifest: keys sorted, so that equal manifests give equal bytes."""
    # allow_nan: infinity is no JSON, and a manifest that other programs cannot read is none.
    text = json.dumps(
        dataclasses.asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False
    )
    return text + "\n"


def from_json(text: str | bytes, where: str) -> Manifest:
    """Read what `to_json` wrote; `where` names the file in errors.

    Raises ArtifactError for text that is no JSON, for a newer schema and for fields that are
    missing, unknown or of another type.
    """
    again = "copy the artifact again or compile the model again"
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"{where} is damaged ({error}); {again}") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if type(schema) is not int:
        raise ArtifactError(f"{where} is no manifest of an artifact: it has no schema number")
    if schema > SCHEMA:
        raise ArtifactError(
            f"{where} has schema {schema}, and this version of qcompiler reads up to {SCHEMA}; "
            f"upgrade it: the artifact was written by qcompiler {data.get('compiler')}"
        )
    try:
        decoded: Manifest = _decode(Manifest, data, "")
    except _WrongType as error:
        raise ArtifactError(f"{where} is damaged: {error}; {again}") from None
    except ArtifactError as error:
        raise ArtifactError(f"{where} is damaged: {error}; {again}") from None
    return decoded


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Turn JSON into a value of the type `kind`: dataclasses, tuples, dicts, unions of scalars."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _decode_fields(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise _WrongType(f"{where} should be a list")
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(arguments) != len(value):
            raise _WrongType(f"{where} should have {len(arguments)} items")
        pairs = zip(arguments, value, strict=True)
        return tuple(_decode(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(pairs))
    if origin is dict:
        if not isinstance(value, dict):
            raise _WrongType(f"{where} should be an object")
        return {key: _decode(arguments[1], v, f"{where}.{key}") for key, v in value.items()}
    if any(get_origin(one) is list for one in arguments):  # Plain: whatever JSON holds
        return value
    if origin is Literal:
        if value not in arguments:
            raise _WrongType(f"{where} should be one of {', '.join(map(str, arguments))}")
        return value
    allowed = arguments if origin in {Union, types.UnionType} else (kind,)
    if isinstance(value, dict):
        for one in allowed:
            if dataclasses.is_dataclass(one):
                return _decode_fields(one, value, where)
    if type(value) in allowed:
        return value
    if float in allowed and type(value) is int:
        return float(value)
    names = " or ".join("null" if one is types.NoneType else one.__name__ for one in allowed)
    raise _WrongType(f"{where} should be {names}, not {json.dumps(value)[:40]}")


def _decode_fields(kind: Any, value: Any, where: str) -> Any:
    """Turn a JSON object into the dataclass `kind`; unknown and missing fields are errors."""
    if not isinstance(value, dict):
        raise _WrongType(f"{where} should be an object")
    hints = _HINTS.get(kind) or _HINTS.setdefault(kind, get_type_hints(kind))
    prefix = f"{where}." if where else ""
    for name in value.keys() - hints.keys():
        raise _WrongType(f"the field {prefix}{name} is unknown")
    for one in dataclasses.fields(kind):
        has_default = (one.default, one.default_factory) != (dataclasses.MISSING,) * 2
        if one.name not in value and not has_default:
            raise _WrongType(f"the field {prefix}{one.name} is missing")
    return kind(**{k: _decode(hints[k], v, prefix + k) for k, v in value.items()})


_HINTS: dict[type, dict[str, Any]] = {}
