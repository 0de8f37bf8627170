"""What is asked of a compilation, checked as a whole before any slow work begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import targets
from passes import PASSES
from qcompiler.core.config import PipelineConfig, StepConfig
from qcompiler.core.errors import ConfigError
from qcompiler.core.options import Table, build_pass, pass_table
from qcompiler.core.pass_base import Pass
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.stage import Stage
from qcompiler.core.target import Target
from qcompiler.presets import find_pipeline


def plan_request(
    pipeline: str | Path, target: str | None = None, settings: Sequence[str] = ()
) -> tuple[Pipeline, Target]:
    """Read a pipeline with its settings and find its target.

    Raises:
        ConfigError: a mistake in the file, named with its step, or in a setting.
        UsageError: there is no such target, or none fits this machine.
    """
    table = pass_table(PASSES)
    config = find_pipeline(str(pipeline), passes=table)
    machine = targets.find(target or config.target or targets.NATIVE)
    changed = config.with_settings(settings)
    passes = tuple(
        _build(number, step, config, settings, table)
        for number, step in enumerate(changed.steps, start=1)
    )
    try:
        steps = Pipeline(passes)
    except ConfigError as error:
        raise ConfigError(f"{config.source}: {error}") from None
    if steps.yields is not Stage.LEGAL:
        raise ConfigError(
            f"{config.source}: the last step leaves a {steps.yields} program; end with 'legalize'"
        )
    return steps, machine


def _build(
    number: int, step: StepConfig, config: PipelineConfig, settings: Sequence[str], table: Table
) -> Pass:
    try:
        return build_pass(step.name, step.options, table)
    except ConfigError as error:
        written = config.steps[number - 1]
        given = [text for text in settings if text.partition(".")[0].strip() == step.name]
        if given and _mistake(written, table) != str(error):
            raise ConfigError(f"--set {' --set '.join(given)}: {error}") from None
        raise ConfigError(f"{config.source}: step {number}: {error}") from None


def _mistake(step: StepConfig, table: Table) -> str | None:
    """Return what is wrong with a step as its file has it."""
    try:
        build_pass(step.name, step.options, table)
    except ConfigError as error:
        return str(error)
    return None
