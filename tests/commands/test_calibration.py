"""Sizes are read strictly, and mistakes are found in order of what it takes to find them."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from qcompiler.commands.calibration import CalibrationOptions, parse_bytes
from qcompiler.core.errors import UsageError


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("2G", 2e9), ("512M", 512e6), ("1.5GB", 1.5e9), (" 64 kB ", 64e3), ("1Ti", 2**40)],
)
def test_sizes(text: str, count: float) -> None:
    assert parse_bytes(text) == count


@given(st.integers(0, 10**15))
def test_a_number_of_bytes_is_itself(count: int) -> None:
    assert parse_bytes(str(count)) == parse_bytes(f"{count}B") == count


@pytest.mark.parametrize(
    "text", ["", "G", "-1", "2 G B", "2g", "2GG", "1e9", "0x10", "nan", "inf", "2,5G", "1.G", "٣G"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match=r"--max-ram .*: write a size such as 2G or 512M"):
        parse_bytes(text)


def test_files_are_read_and_sizes_parsed(tmp_path: Path) -> None:
    CalibrationOptions().check()
    with pytest.raises(UsageError, match=r"there is no text file .*no\.txt"):
        CalibrationOptions(files=(tmp_path / "no.txt",)).check()
    with pytest.raises(UsageError, match="--max-ram much"):
        CalibrationOptions(max_ram="much").check()


def test_without_files_there_is_no_calibration() -> None:
    assert CalibrationOptions(max_ram="1k").keywords() == {
        "calibration": None,
        "samples": None,
        "sequence_length": None,
        "seed": 0,
        "max_ram": 1000,
    }


def test_a_file_that_no_pass_reads_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("text " * 200)
    with pytest.raises(UsageError, match="the calibration would not be used"):
        CalibrationOptions(files=(file,)).check_against([])
