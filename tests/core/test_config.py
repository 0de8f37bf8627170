"""Pipeline files and settings: what they mean, and the sentence each mistake gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.core.config import PipelineConfig, parse_pipeline, parse_setting, read_pipeline
from qcompiler.core.errors import ConfigError

PIPELINE = """
target = "x86-64-v3"
[[pass]]
name = "canonicalize"
[[pass]]
name = "set-bits"
rules = [{ pattern = "*", scheme = "w4a8g32" }, { pattern = "lm_head", scheme = "w8a8g32" }]
[[pass]]
name = "quantize-rtn"
clip_quantile = 0.999
"""
PASSES = ("canonicalize", "fuse-qkv", "legalize", "quantize-rtn", "set-bits")


def parse(text: str) -> PipelineConfig:
    return parse_pipeline(text, source="mine.toml", passes=PASSES)


def test_a_file_becomes_a_target_and_steps(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(PIPELINE)
    config = read_pipeline(file, passes=PASSES)
    assert config.target == "x86-64-v3"
    assert config.source == str(file)
    assert [(step.name, step.options) for step in config.steps] == [
        ("canonicalize", {}),
        (
            "set-bits",
            {
                "rules": [
                    {"pattern": "*", "scheme": "w4a8g32"},
                    {"pattern": "lm_head", "scheme": "w8a8g32"},
                ]
            },
        ),
        ("quantize-rtn", {"clip_quantile": 0.999}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[pass]\n", r"^mine\.toml: not TOML: .*line 1"),
        ("", r"^mine\.toml: no steps: add at least one \[\[pass\]\]"),
        ("pass = []", r"^mine\.toml: no steps"),
        ('target = "native"', r"^mine\.toml: no steps"),
        ("target = 3\n[[pass]]\nname = 'legalize'", "^mine.toml: write target as text"),
        ("[pass]\nname = 'legalize'", r"write \[\[pass\]\] with two brackets"),
        ("pass = 'legalize'", r"write each step as a table that \[\[pass\]\] opens"),
        ("pass = ['legalize']", r"write each step as a table that \[\[pass\]\] opens"),
        (
            "tarqet = 'native'\n[[pass]]\nname = 'legalize'",
            r"^mine\.toml: unknown key 'tarqet'; did you mean 'target'\? known: target, summary,",
        ),
        ("[[passes]]\nname = 'legalize'", r"unknown key 'passes'; did you mean 'pass'\?"),
        ("[[pass]]\nnmae = 'legalize'", r"step 1 has no name; did you mean 'name' by 'nmae'\?"),
        ("[[pass]]\n", 'step 1 has no name: add name = "<pass>"'),
        ("[[pass]]\nname = 7", 'step 1: write the name as text, name = "legalize"'),
        (
            "[[pass]]\nname = 'canonicalize'\n[[pass]]\nname = 'quantize-rnt'",
            r"^mine\.toml: step 2: unknown pass 'quantize-rnt'; did you mean 'quantize-rtn'\?",
        ),
        (
            "[[pass]]\nname = 'quantize-rtn'\nclip-quantile = 0.9",
            "step 1 'quantize-rtn': 'clip-quantile' is no option name",
        ),
    ],
)
def test_each_mistake_has_its_sentence(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_without_a_list_of_passes_names_must_still_look_like_names() -> None:
    assert parse_pipeline("[[pass]]\nname = 'my-pass'", source="mine.toml").steps
    with pytest.raises(ConfigError, match="step 1: 'My_Pass' is no pass name"):
        parse_pipeline("[[pass]]\nname = 'My_Pass'", source="mine.toml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the pipeline: No such file"):
        read_pipeline(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="cannot read the pipeline: Is a directory"):
        read_pipeline(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        read_pipeline(tmp_path / "binary.toml")


def test_settings_change_a_copy() -> None:
    before = parse(PIPELINE)
    after = before.with_settings(["quantize-rtn.clip_quantile=1", 'quantize-rtn.mode="full"'])
    assert after.steps[2].options == {"clip_quantile": 1, "mode": "full"}
    assert before.steps[2].options == {"clip_quantile": 0.999}
    assert after.steps[:2] == before.steps[:2]
    assert before.with_settings([]) == before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("quantize-rnt.mode=1", "unknown pass 'quantize-rnt'; did you mean 'quantize-rtn'.*mine"),
        ("quantize-rtn=1", "write PASS.OPTION=VALUE"),
        ("quantize-rtn.mode", "write PASS.OPTION=VALUE"),
        ("quantize-rtn.mode.depth=1", "write PASS.OPTION=VALUE"),
        ("=1", "write PASS.OPTION=VALUE"),
        ("quantize-rtn.mode=full", "needs quotes .* --set 'quantize-rtn.mode=\"full\"'"),
        ("quantize-rtn.mode=", "'' is not a TOML value"),
        ("quantize-rtn.mode=1\nother=2", "write one value, on one line"),
    ],
)
def test_each_wrong_setting_has_its_sentence(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(PIPELINE).with_settings([setting])


def test_a_setting_does_not_guess_between_steps() -> None:
    twice = parse("[[pass]]\nname = 'fuse-qkv'\n" * 2)
    with pytest.raises(ConfigError, match=r"'fuse-qkv' is steps 1 and 2 of mine\.toml"):
        twice.with_settings(["fuse-qkv.deep=true"])


@given(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.lists(st.integers(0, 9)),
        st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="'")),
    )
)
def test_values_come_back_as_toml_reads_them(value: object) -> None:
    written = f"'{value}'" if isinstance(value, str) else str(value).lower()
    assert parse_setting(f"some-pass.option={written}") == ("some-pass", "option", value)
