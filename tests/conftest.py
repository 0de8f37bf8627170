"""What every test may use: markers that look at the machine, text, settings of hypothesis."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from targets import cpu_features

# Examples must not depend on the day, nor fail because the machine was busy.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and benchmarks unless they are asked for."""
    features = cpu_features()
    measure = "bench" in config.option.markexpr
    for item in items:
        for marker in item.iter_markers("isa"):
            if lacking := sorted(set(marker.args) - features):
                item.add_marker(pytest.mark.skip(f"this processor lacks {', '.join(lacking)}"))
        if not measure and item.get_closest_marker("bench"):
            item.add_marker(pytest.mark.skip("measures speed; ask for it with -m bench"))


@pytest.fixture(scope="session")
def evaluation_text() -> str:
    """English text of some length, for evaluation.

    WikiText-2's validation split where `QCOMPILER_TEST_DATA` names a folder that has it, otherwise
    the project's own documentation.
    """
    folder = os.environ.get("QCOMPILER_TEST_DATA")
    if folder and (file := Path(folder) / "wikitext2" / "valid.txt").is_file():
        text = file.read_text(encoding="utf-8")
        return text[len(text) // 2 :]  # the first half is for calibration
    root = Path(__file__).parent.parent
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return "\n\n".join(page.read_text(encoding="utf-8") for page in pages if page.is_file())
