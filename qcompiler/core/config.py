"""Pipelines as data: the TOML file, its mistakes, and options set on the command line.

A file names a target, which may be left out, and the passes in order; whatever else a `[[pass]]`
table holds are the options of that pass:

    target = "native"
    [[pass]]
    name = "legalize"
    widen = true
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qcompiler.core.errors import ConfigError, suggest

_PASS_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_OPTION_NAME = re.compile(r"[a-z][a-z0-9_]*")


class StepConfig(BaseModel):
    """One step of a pipeline: a pass by name, and options as TOML wrote them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class PipelineConfig(BaseModel):
    """What a pipeline file says. `source` names the file in messages."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: str
    target: str | None = None
    summary: str = ""
    steps: tuple[StepConfig, ...]

    def with_settings(self, settings: Iterable[str]) -> PipelineConfig:
        """Return a copy in which each `PASS.OPTION=VALUE` has been set.

        Raises ConfigError for text of another form, and for a pass that the pipeline has not, or
        has more than once.
        """
        steps = list(self.steps)
        for setting in settings:
            name, option, value = parse_setting(setting)
            places = [i for i, step in enumerate(steps) if step.name == name]
            if not places:
                known = suggest("pass", name, {step.name for step in steps})
                raise ConfigError(f"--set {setting}: {known} (the passes of {self.source})")
            if len(places) > 1:
                numbers = " and ".join(str(i + 1) for i in places)
                raise ConfigError(
                    f"--set {setting}: '{name}' is steps {numbers} of {self.source}; "
                    "say which by writing the option into a pipeline file of your own"
                )
            step = steps[places[0]]
            steps[places[0]] = StepConfig(name=name, options={**step.options, option: value})
        return self.model_copy(update={"steps": tuple(steps)})


class _File(BaseModel):
    """A pipeline file's top level."""

    model_config = ConfigDict(extra="forbid", strict=True)

    target: str | None = None
    summary: str = ""
    steps: list[dict[str, Any]] = Field(alias="pass", min_length=1)


def read_pipeline(path: Path, *, passes: Collection[str] | None = None) -> PipelineConfig:
    """Read a pipeline file; `passes` are the names a step may have, where they are known.

    Raises ConfigError, with the file, the step and the nearest right name.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a pipeline file: it is not UTF-8 text") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the pipeline: {error.strerror}") from error
    return parse_pipeline(text, source=str(path), passes=passes)


def parse_pipeline(
    text: str, *, source: str, passes: Collection[str] | None = None
) -> PipelineConfig:
    """Read a pipeline from TOML text that came from `source`; see `read_pipeline`.

    >>> parse_pipeline('[[pass]]\\nname = "legalize"', source="mine.toml").steps
    (StepConfig(name='legalize', options={}),)
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML: {error}") from error
    try:
        file = _File.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error, raw)}") from None
    steps = tuple(
        _step(number, table, source, passes) for number, table in enumerate(file.steps, start=1)
    )
    return PipelineConfig(source=source, target=file.target, summary=file.summary, steps=steps)


def _step(
    number: int, table: dict[str, Any], source: str, passes: Collection[str] | None
) -> StepConfig:
    """Check one `[[pass]]` table by itself; whether its options fit is for the pass to say."""
    if "name" not in table:
        near = difflib.get_close_matches("name", table, n=1, cutoff=0.5)
        hint = f"; did you mean 'name' by '{near[0]}'?" if near else ': add name = "<pass>"'
        raise ConfigError(f"{source}: step {number} has no name{hint}")
    name = table["name"]
    if not isinstance(name, str):
        raise ConfigError(f'{source}: step {number}: write the name as text, name = "legalize"')
    if passes is not None and name not in passes:
        raise ConfigError(f"{source}: step {number}: {suggest('pass', name, passes)}")
    if not _PASS_NAME.fullmatch(name):
        raise ConfigError(
            f"{source}: step {number}: '{name}' is no pass name; "
            "those are lower-case words joined by '-', such as 'fuse-qkv'"
        )
    options = {key: value for key, value in table.items() if key != "name"}
    for key in options:
        if not _OPTION_NAME.fullmatch(key):
            raise ConfigError(
                f"{source}: step {number} '{name}': '{key}' is no option name; "
                "those are lower-case words joined by '_'"
            )
    return StepConfig(name=name, options=options)


def parse_setting(text: str) -> tuple[str, str, Any]:
    """Split `PASS.OPTION=VALUE`, whose value is written as in TOML.

    >>> parse_setting("quantize-gptq.damping=0.01")
    ('quantize-gptq', 'damping', 0.01)
    """
    place, equals, written = text.partition("=")
    name, dot, option = place.strip().partition(".")
    if not (equals and dot and _PASS_NAME.fullmatch(name) and _OPTION_NAME.fullmatch(option)):
        raise ConfigError(
            f"--set {text}: write PASS.OPTION=VALUE, for instance legalize.widen=true"
        )
    written = written.strip()
    try:
        raw = tomllib.loads(f"value = {written}")
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"--set {text}: '{written}' is not a TOML value; text needs quotes that reach the "
            f"program: --set '{name}.{option}=\"{written.strip(chr(34))}\"'"
        ) from error
    if raw.keys() != {"value"}:
        raise ConfigError(f"--set {text}: write one value, on one line")
    return name, option, raw["value"]


def _explain(error: ValidationError, raw: dict[str, Any]) -> str:
    """Turn what pydantic says of a file's top level into a sentence."""
    unknown = [str(e["loc"][0]) for e in error.errors() if e["type"] == "extra_forbidden"]
    if unknown:
        near = difflib.get_close_matches(unknown[0], ["target", "summary", "pass"], n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ";"
        return f"unknown key '{unknown[0]}'{hint} known: target, summary, [[pass]]"
    key = str(error.errors()[0]["loc"][0])
    if key != "pass":
        return f"write {key} as text, in quotes"
    if isinstance(raw.get("pass"), dict):
        return "write [[pass]] with two brackets: it opens one of several steps"
    if "pass" not in raw or raw["pass"] == []:
        return 'no steps: add at least one [[pass]] with its name = "<pass>"'
    return "write each step as a table that [[pass]] opens"
