"""Budgets of the command line become settings, or sentences."""

from __future__ import annotations

import pytest

from qcompiler.budgets import budget_settings, parse_budget
from qcompiler.core.config import PipelineConfig, parse_pipeline
from qcompiler.core.errors import ConfigError, UsageError
from qcompiler.planning import plan_request
from qcompiler.presets import find_pipeline

PIPELINE = """
[[pass]]
name = "measure-cost"
time = "none"
[[pass]]
name = "allocate-bits"
"""


def pipeline(text: str = PIPELINE) -> PipelineConfig:
    return parse_pipeline(text, source="mine.toml")


def test_budgets_replace_those_of_the_pipeline() -> None:
    settings = budget_settings(pipeline(), ["bits_per_weight=4.5", "bytes=9e7"])
    changed = pipeline().with_settings(settings)
    assert changed.steps[1].options["budget"] == {"bits_per_weight": 4.5, "bytes": 9e7}
    assert changed.steps[0].options["time"] == "none"


def test_times_are_measured_only_where_they_are_asked_for() -> None:
    for settings in (
        budget_settings(pipeline(), ["decode_ms=5"]),
        budget_settings(pipeline(), [], times=True),
    ):
        assert pipeline().with_settings(settings).steps[0].options["time"] == "auto"
    fixed = pipeline(PIPELINE.replace("none", "roofline"))
    assert not budget_settings(fixed, [], times=True)


def test_the_balanced_preset_takes_any_budget() -> None:
    config = find_pipeline("balanced")
    for budget in ("bits_per_weight=5", "bytes=9e7", "decode_ms=5", "prefill_ms=200"):
        plan_request("balanced", "x86-64-v3", budget_settings(config, [budget]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bits=4", "unknown budget 'bits'; did you mean 'bytes'"),
        ("bytes", "write NAME=NUMBER"),
        ("bytes=many", "'many' is not a number"),
        ("bytes=0", "must be more than 0"),
        ("bytes=nan", "must be more than 0"),
    ],
)
def test_malformed_budgets_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_budget(text)


def test_a_budget_is_given_once_and_to_a_pipeline_that_shares_bits_out() -> None:
    with pytest.raises(UsageError, match="twice"):
        budget_settings(pipeline(), ["bytes=1", "bytes=2"])
    with pytest.raises(ConfigError, match="has no 'allocate-bits'"):
        budget_settings(find_pipeline("w8a8"), ["bytes=1"])
