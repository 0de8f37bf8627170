"""Budgets given on the command line, as settings of a pipeline."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qcompiler.core.config import PipelineConfig
from qcompiler.core.errors import ConfigError, UsageError, suggest

NAMES = ("bits_per_weight", "bytes", "decode_ms", "prefill_ms")
ALLOCATE, COST = "allocate-bits", "measure-cost"


def parse_budget(text: str) -> tuple[str, float]:
    """Split `NAME=NUMBER`.

    Raises:
        UsageError: it has another form, or there is no such budget.

    >>> parse_budget("bits_per_weight=4.5")
    ('bits_per_weight', 4.5)
    """
    name, equals, written = text.partition("=")
    name = name.strip()
    if not equals:
        raise UsageError(f"--budget {text}: write NAME=NUMBER, for instance bits_per_weight=4.5")
    if name not in NAMES:
        raise UsageError(f"--budget {text}: {suggest('budget', name, NAMES)}")
    try:
        limit = float(written)
    except ValueError:
        raise UsageError(f"--budget {text}: '{written}' is not a number") from None
    if not 0 < limit < math.inf:
        raise UsageError(f"--budget {text}: a budget must be more than 0")
    return name, limit


def budget_settings(
    config: PipelineConfig, budgets: Sequence[str], *, times: bool = False
) -> tuple[str, ...]:
    """Return the settings that give a pipeline `budgets` in the place of its own.

    Times are measured where a budget, or `times`, asks for them.

    Raises:
        UsageError: a budget is malformed or given twice.
        ConfigError: the pipeline shares out no bits.
    """
    limits = dict(map(parse_budget, budgets))
    if len(limits) < len(budgets):
        raise UsageError("one budget is given twice")
    names = [step.name for step in config.steps]
    if ALLOCATE not in names:
        raise ConfigError(
            f"{config.source} has no '{ALLOCATE}', which shares bits out; use the pipeline "
            "'balanced', or put that pass into yours"
        )
    settings = []
    if limits:
        table = ", ".join(f"{name} = {limit!r}" for name, limit in limits.items())
        settings.append(f"{ALLOCATE}.budget={{ {table} }}")
    if COST in names and (times or any(name.endswith("_ms") for name in limits)):
        step = config.steps[names.index(COST)]
        if step.options.get("time") == "none":
            settings.append(f'{COST}.time="auto"')
    return tuple(settings)
