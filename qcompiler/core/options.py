"""From what a pipeline file says to a pass, and back: names, types and values of options."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from qcompiler.core.errors import ConfigError, suggest
from qcompiler.core.pass_base import Pass

ENTRY_POINTS = "qcompiler.passes"
"""The entry-point group in which other distributions name passes of their own."""

Table = Mapping[str, type[Pass]]


def pass_table(builtin: Iterable[type[Pass]]) -> dict[str, type[Pass]]:
    """Return every pass there is by name: ours, then those of the entry points `qcompiler.passes`.

    Raises:
        ConfigError: an entry point cannot be loaded, is no pass, or takes a name that is taken.
    """
    table = {step.name: step for step in builtin}
    owners = {name: "qcompiler" for name in table}
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda p: (p.name, p.value)):
        owner = point.dist.name if point.dist is not None else "an unnamed distribution"
        step = _load(point, owner)
        if step.name in table:
            raise ConfigError(
                f"the pass '{step.name}' of {owner} has the name of one of {owners[step.name]}'s; "
                f"rename it, or uninstall {owner}"
            )
        table[step.name], owners[step.name] = step, owner
    return table


def _load(point: EntryPoint, owner: str) -> type[Pass]:
    """Import what an entry point names, and see that it is a pass called as the entry point is."""
    where = f"the entry point '{point.name} = {point.value}' of {owner}"
    try:
        step = point.load()
    except Exception as error:  # whatever a stranger's module does when it is imported
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{where} cannot be loaded ({why}); mend or uninstall {owner}") from error
    if not (isinstance(step, type) and issubclass(step, Pass) and dataclasses.is_dataclass(step)):
        raise ConfigError(f"{where} is no pass: it must be a dataclass derived from Pass")
    if getattr(step, "name", None) != point.name:
        raise ConfigError(
            f"{where} names a pass that calls itself '{getattr(step, 'name', '')}'; "
            "the two names must agree"
        )
    return step


def build_pass(name: str, options: Mapping[str, Any], table: Table) -> Pass:
    """Make the pass called `name` from options as a pipeline file gives them.

    Raises:
        ConfigError: there is no such pass or option, one is missing, or a value does not fit.
    """
    if name not in table:
        raise ConfigError(suggest("pass", name, table))
    try:
        step: Pass = _build(table[name], options, "")
    except ConfigError as error:
        raise ConfigError(f"pass '{name}': {error}") from None
    return step


def spec(step: Pass) -> dict[str, Any]:
    """Return a pass as a pipeline file would say it, `name` first, defaults left out.

    `build_pass` of the same name and options gives an equal pass.
    """
    return {"name": step.name, **_plain_fields(step)}


def _build(cls: type[Any], options: Mapping[str, Any], where: str) -> Any:
    """Make a dataclass from a table; `where` is the path that leads to it, for messages."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = get_type_hints(cls)
    of = f" of {where}" if where else ""
    values = {}
    for option, value in options.items():
        if option not in fields:
            if not fields:
                raise ConfigError(f"there is no option '{option}'{of}: it takes none")
            raise ConfigError(suggest(f"option{of}", option, fields))
        place = f"{where}.{option}" if where else option
        values[option] = _convert(value, hints[option], place)
    missing = [
        f.name
        for f in fields.values()
        if f.name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"the option '{missing[0]}'{of} is missing")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def _convert(value: Any, hint: Any, place: str) -> Any:
    """Turn a TOML value into what a field of type `hint` holds."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, place)
    if origin is Literal:
        if not any(type(value) is type(a) and value == a for a in arguments):
            raise ConfigError(suggest(place, str(value), [str(a) for a in arguments]))
        return value
    if origin in (tuple, frozenset):
        return _convert_sequence(value, origin, arguments, place)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        _expect(isinstance(value, Mapping), place, "a table {…}", value)
        return _build(hint, value, place)
    if hint is float:
        _expect(
            isinstance(value, int | float) and not isinstance(value, bool), place, "a number", value
        )
        return float(value)
    if hint is int:
        _expect(type(value) is int, place, "a whole number", value)
        return value
    if hint is bool:
        _expect(type(value) is bool, place, "true or false", value)
        return value
    if hint is str:
        _expect(isinstance(value, str), place, "text", value)
        return value
    if hint is Path:
        _expect(isinstance(value, str), place, "a path", value)
        return Path(value)
    raise TypeError(f"option '{place}' has the type {hint}, which no pipeline file can give")


def _convert_union(value: Any, choices: tuple[Any, ...], place: str) -> Any:
    """Take the first of several types that fits; None cannot be written, only left out."""
    errors = []
    for hint in choices:
        if hint is types.NoneType:
            if value is None:
                return None
            continue
        try:
            return _convert(value, hint, place)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _convert_sequence(value: Any, kind: Any, arguments: tuple[Any, ...], place: str) -> Any:
    _expect(isinstance(value, list | tuple), place, "a list […]", value)
    if kind is frozenset or arguments[-1] is Ellipsis:
        hints = [arguments[0]] * len(value)
    else:
        hints = list(arguments)
        _expect(len(value) == len(hints), place, f"a list of {len(hints)}", value)
    return kind(
        _convert(v, h, f"{place}[{i}]") for i, (v, h) in enumerate(zip(value, hints, strict=True))
    )


def _expect(condition: bool, place: str, expected: str, value: Any) -> None:
    if not condition:
        raise ConfigError(f"'{place}' must be {expected}, not {_describe(value)}")


def _describe(value: Any) -> str:
    """Say what kind of TOML value was found, and which.

    >>> _describe("high"), _describe([1, 2])
    ('the text "high"', 'a list of 2')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'the text "{value}"'
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return "a table"
    return f"a {type(value).__name__}"


def _plain_fields(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that are not at their defaults, as TOML values."""
    plain = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.default is not dataclasses.MISSING and value == field.default:
            continue
        if field.default_factory is not dataclasses.MISSING and value == field.default_factory():
            continue
        plain[field.name] = _plain(value)
    return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _plain_fields(value)
    if isinstance(value, frozenset):
        return sorted(_plain(v) for v in value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
