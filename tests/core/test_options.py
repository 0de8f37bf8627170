"""Options of passes: what a file may say, the sentence each mistake gets, and the way back."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.core import options
from qcompiler.core.errors import ConfigError
from qcompiler.core.options import build_pass, pass_table, spec
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Budget:
    bits: float
    strict: bool = False

    def __post_init__(self) -> None:
        if self.bits < 2:
            raise ConfigError(f"{self.bits} bits are too few")


@dataclass(frozen=True, kw_only=True)
class Allot(Pass):
    name: ClassVar[str] = "allot"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})

    budget: Budget
    rounds: int = 3
    damping: float = 0.01
    method: Literal["fast", "exact"] = "fast"
    deep: bool = False
    title: str = "plain"
    choices: tuple[str, ...] = ()
    span: tuple[int, float] = (1, 2.0)
    limits: tuple[Budget, ...] = ()
    skip: frozenset[str] = frozenset()
    seed: int | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"{self.rounds} rounds are none; use 1 or more")

    def run(self, program: Program, context: PassContext) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Plain(Pass):
    name: ClassVar[str] = "plain"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})

    def run(self, program: Program, context: PassContext) -> None:
        return None


TABLE = pass_table([Allot, Plain])


def build(text: str) -> Pass:
    return build_pass("allot", tomllib.loads(text), TABLE)


def test_every_kind_of_value_is_read() -> None:
    step = build(
        """
        budget = { bits = 4 }
        rounds = 5
        damping = 1
        method = "exact"
        deep = true
        title = "new"
        choices = ["w4a8", "w8a8"]
        span = [2, 3]
        limits = [{ bits = 2.5, strict = true }, { bits = 3 }]
        skip = ["a", "b", "a"]
        seed = 7
        folder = "somewhere"
        """
    )
    assert step == Allot(
        budget=Budget(bits=4.0),
        rounds=5,
        damping=1.0,
        method="exact",
        deep=True,
        title="new",
        choices=("w4a8", "w8a8"),
        span=(2, 3.0),
        limits=(Budget(bits=2.5, strict=True), Budget(bits=3.0)),
        skip=frozenset({"a", "b"}),
        seed=7,
        folder=Path("somewhere"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "^pass 'allot': the option 'budget' is missing$"),
        (
            "budget = {bits = 4}\nroundz = 5",
            r"^pass 'allot': unknown option 'roundz'; did you mean 'rounds'\? known: budget, ch",
        ),
        ("budget = 4", "^pass 'allot': 'budget' must be a table {…}, not the number 4$"),
        ("budget = {}", "^pass 'allot': the option 'bits' of budget is missing$"),
        (
            "budget = {bits = 4, strickt = true}",
            r"unknown option of budget 'strickt'; did you mean 'strict'\? known: bits, strict$",
        ),
        ("budget = {bits = 'four'}", "'budget.bits' must be a number, not the text \"four\"$"),
        ("budget = {bits = true}", "'budget.bits' must be a number, not true$"),
        ("budget = {bits = 1}", "^pass 'allot': budget: 1.0 bits are too few$"),
        ("budget = {bits = 4}\nrounds = 0", "^pass 'allot': 0 rounds are none; use 1 or more$"),
        (
            "budget = {bits = 4}\nrounds = 2.5",
            "'rounds' must be a whole number, not the number 2.5",
        ),
        ("budget = {bits = 4}\nrounds = true", "'rounds' must be a whole number, not true"),
        ("budget = {bits = 4}\ndeep = 1", "'deep' must be true or false, not the number 1"),
        ("budget = {bits = 4}\ntitle = 1", "'title' must be text, not the number 1"),
        ("budget = {bits = 4}\nseed = 'x'", "'seed' must be a whole number, not the text \"x\""),
        ("budget = {bits = 4}\nfolder = 3", "'folder' must be a path, not the number 3"),
        ("budget = {bits = 4}\nchoices = 'w4a8'", r"'choices' must be a list \[…\], not the text"),
        (
            "budget = {bits = 4}\nchoices = ['a', 3]",
            r"'choices\[1\]' must be text, not the number 3",
        ),
        ("budget = {bits = 4}\nspan = [1]", "'span' must be a list of 2, not a list of 1"),
        (
            "budget = {bits = 4}\nlimits = [{bits = 1}]",
            r"'allot': limits\[0\]: 1.0 bits are too few",
        ),
        ("budget = {bits = 4}\nlimits = [{}]", r"the option 'bits' of limits\[0\] is missing"),
        ("budget = {bits = 4}\ntitle = 2020-01-01", "'title' must be text, not a date"),
        (
            "budget = {bits = 4}\nmethod = 'exakt'",
            r"unknown method 'exakt'; did you mean 'exact'\? known: exact, fast$",
        ),
        ("budget = {bits = 4}\nmethod = 3", "unknown method '3'; known: exact, fast$"),
    ],
)
def test_each_mistake_has_its_sentence(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(text)
    assert "\n" not in str(caught.value)


def test_unknown_passes_and_passes_without_options() -> None:
    with pytest.raises(ConfigError, match=r"unknown pass 'alot'; did you mean 'allot'\?"):
        build_pass("alot", {}, TABLE)
    with pytest.raises(ConfigError, match="'plain': there is no option 'deep': it takes none"):
        build_pass("plain", {"deep": True}, TABLE)


def test_a_type_no_file_can_give_is_a_defect() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd(Plain):
        name: ClassVar[str] = "odd"
        hook: Any = None

    with pytest.raises(TypeError, match="option 'hook' has the type"):
        build_pass("odd", {"hook": 1}, {"odd": Odd})


budgets = st.builds(Budget, bits=st.floats(2, 8), strict=st.booleans())
passes = st.builds(
    Allot,
    budget=budgets,
    rounds=st.integers(1, 9),
    damping=st.floats(0, 1),
    method=st.sampled_from(["fast", "exact"]),
    deep=st.booleans(),
    title=st.text(max_size=5),
    choices=st.lists(st.sampled_from("abc"), max_size=3).map(tuple),
    span=st.tuples(st.integers(0, 3), st.floats(0, 1)),
    limits=st.lists(budgets, max_size=2).map(tuple),
    skip=st.frozensets(st.sampled_from("abc")),
    seed=st.none() | st.integers(0, 5),
    folder=st.none() | st.just(Path("a/b")),
)


@given(passes)
def test_a_pass_comes_back_from_its_spec(step: Allot) -> None:
    said = spec(step)
    name = said.pop("name")
    assert build_pass(name, said, TABLE) == step


def test_a_spec_leaves_defaults_out() -> None:
    assert spec(Plain()) == {"name": "plain"}
    assert spec(Allot(budget=Budget(bits=4.0), seed=3)) == {
        "name": "allot",
        "budget": {"bits": 4.0},
        "seed": 3,
    }


Point = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Point:
    """Return a function that makes something an entry point of the group."""

    def add(name: str, load: Callable[[], Any], owner: str = "my-passes") -> None:
        point = SimpleNamespace(
            name=name, value="mine:Pass", dist=SimpleNamespace(name=owner), load=load
        )
        points = [*options.entry_points(group=options.ENTRY_POINTS), point]
        monkeypatch.setattr(options, "entry_points", lambda group: points)

    return add


def test_an_installed_pass_is_in_the_table(install: Point) -> None:
    install("plain", lambda: Plain)
    assert pass_table([Allot]) == {"allot": Allot, "plain": Plain}


def broken() -> type[Pass]:
    raise ImportError("no module\n named 'gone'")


@pytest.mark.parametrize(
    ("name", "load", "message"),
    [
        (
            "plain",
            lambda: Plain,
            "^the pass 'plain' of my-passes has the name of one of qcompiler's; rename it, or "
            "uninstall my-passes$",
        ),
        (
            "other",
            broken,
            r"^the entry point 'other = mine:Pass' of my-passes cannot be loaded \(ImportError: no "
            r"module named 'gone'\); mend or uninstall my-passes$",
        ),
        ("other", lambda: print, "is no pass: it must be a dataclass derived from Pass$"),
        ("other", lambda: Plain(), "is no pass: it must be a dataclass derived from Pass$"),
        (
            "other",
            lambda: Plain,
            "names a pass that calls itself 'plain'; the two names must agree",
        ),
    ],
)
def test_a_bad_entry_point_has_its_sentence(
    name: str, load: Callable[[], Any], message: str, install: Point
) -> None:
    install(name, load)
    with pytest.raises(ConfigError, match=message) as caught:
        pass_table([Allot, Plain])
    assert "\n" not in str(caught.value)


def test_two_distributions_with_one_name(install: Point) -> None:
    install("plain", lambda: Plain, "first")
    install("plain", lambda: Plain, "second")
    with pytest.raises(ConfigError, match="'plain' of second has the name of one of first's"):
        pass_table([Allot])
