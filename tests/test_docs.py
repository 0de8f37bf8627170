"""What the pages say is true: pipelines can be built, code works, links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from passes import PASSES
from passes.set_bits import Rule, SetBits
from qcompiler.core import ops, options
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.config import parse_pipeline
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.pipeline import Pipeline, build_pass, pass_table
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage
from targets import TARGETS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Code:
    """A block of code in a page."""

    page: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}-{self.language}-{len(self.text)}"


CODE = [
    Code(page.name, language, text)
    for page in PAGES
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.M | re.S)
]
PIPELINES = [c for c in CODE if c.language == "toml" and "[[pass]]" in c.text]


@pytest.mark.parametrize("code", PIPELINES, ids=str)
def test_pipelines_in_pages_can_be_built(code: Code) -> None:
    table = pass_table(PASSES)
    config = parse_pipeline(code.text, source=code.page, passes=table)
    steps = tuple(build_pass(step.name, step.options, table) for step in config.steps)
    # A page may show the beginning of a pipeline.
    start = Stage.FLOAT
    assert Pipeline(steps, start).steps == steps


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.fixture
def keep_edges(monkeypatch: pytest.MonkeyPatch) -> type[Pass]:
    """The pass that the page on passes tells how to write, found by its entry point."""
    (source,) = [c.text for c in CODE if c.page == "passes.md" and c.language == "python"]
    module = ModuleType("my_passes")
    monkeypatch.setitem(__import__("sys").modules, "my_passes", module)
    exec(compile(source, "docs/passes.md", "exec"), module.__dict__)
    (project,) = [c.text for c in CODE if c.page == "passes.md" and "entry-points" in c.text]
    ((group, names),) = tomllib.loads(project)["project"]["entry-points"].items()
    assert group == options.ENTRY_POINTS
    ((name, value),) = names.items()
    point = SimpleNamespace(
        name=name,
        value=value,
        dist=SimpleNamespace(name="my-passes"),
        load=lambda: getattr(module, value.partition(":")[2]),
    )
    monkeypatch.setattr(options, "entry_points", lambda group: [point])
    return pass_table(PASSES)["keep-edges"]


def tower(height: int) -> Program:
    """Layers of the same kind, one upon the other."""
    build = ProgramBuilder({f"layers.{i}.fc.weight": torch.eye(32) for i in range(height)})
    x = build.input("x", (1, "s", 32))
    for i in range(height):
        y = build.call(ops.rms_norm, x, None, eps=1e-6)
        y = build.call(ops.linear, y, build.weight(f"layers.{i}.fc.weight"))
        y = build.call(torch.ops.aten.silu.default, y)
        x = build.call(torch.ops.aten.add.Tensor, x, y)
    return build.finish(x)


@pytest.mark.parametrize(("layers", "planned"), [(1, [1, 2, 3, 4]), (2, [2, 3])])
def test_the_pass_of_the_page_works(
    layers: int, planned: list[int], keep_edges: type[Pass]
) -> None:
    program, context = tower(6), PassContext(target=TARGETS[0])
    step = build_pass("keep-edges", {"layers": layers}, pass_table(PASSES))
    assert isinstance(step, keep_edges)
    Pipeline((SetBits(rules=(Rule(scheme="w4a8g32"),)), step)).run(program, context)
    assert list(program.plan) == [f"layers.{i}.fc" for i in planned]
    assert len(context.notes["keep-edges"]) == 2 * layers
