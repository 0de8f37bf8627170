"""What a pre-tokeniser's expression becomes, and what is refused."""

from __future__ import annotations

import pytest

from qcompiler.core.errors import UnsupportedError
from qcompiler.runner.characters import characters_of, either_case, just, numeric_characters
from qcompiler.runner.pattern import Op, SetTable, program_of, set_program


def test_a_program() -> None:
    assert program_of("a|bc+", SetTable()) == [
        (Op.SPLIT, 1, 3),
        (Op.SET, 0, 0),  # a
        (Op.JUMP, 8, 0),
        (Op.SET, 1, 0),  # b
        (Op.SET, 2, 0),  # c, once
        (Op.SPLIT, 6, 8),
        (Op.SET, 2, 0),  # and more
        (Op.JUMP, 5, 0),
        (Op.MATCH, 0, 0),
    ]


def test_sets_are_kept_once() -> None:
    sets = SetTable()
    program_of(r"\p{L}+\s?\p{L}", sets)
    assert sets.sets == [characters_of(r"\p{L}"), characters_of(r"\s")]
    assert set_program(just("x"), sets, many=True)[-1] == (Op.MATCH, 0, 0)
    assert len(sets.sets) == 3


def test_characters_are_those_of_the_library() -> None:
    assert characters_of(r"[a-cx]") == ((ord("a"), ord("c")), (ord("x"), ord("x")))
    assert characters_of(r"[^\x{0}-\x{effff}]") == ((0xF0000, 0x10FFFF),)
    assert characters_of(r"[\x{3ffff}-\x{e0000}]") == ((0x3FFFF, 0xE0000),)
    assert either_case("k") == tuple((ord(c), ord(c)) for c in "Kk\u212a")
    assert (ord("0"), ord("9")) in numeric_characters()
    assert any(first <= ord("Ⅷ") <= last for first, last in numeric_characters())


@pytest.mark.parametrize(
    ("expression", "what"),
    [
        ("^a", r"has '\^'"),
        ("a$", r"has '\$'"),
        (r"\bword", r"has '\\\\b'"),
        (r"(a)\1", r"has '\\\\1'"),
        ("(?<=a)b", r"has '\(\?<='"),
        ("(a*)+", r"has '\+'"),
        ("a{2,3}+", r"has '\{2,3\}\+'"),
        ("a{900}", r"has '\{900\}'"),
        ("a)", r"has '\)'"),
        ("a*", "may match nothing"),
        ("[a", "has a set that does not end"),
        (r"[[:nonsense:]&&]x\p{Nope}", "is not understood"),
    ],
)
def test_what_there_is_no_instruction_for(expression: str, what: str) -> None:
    with pytest.raises(UnsupportedError, match=what):
        program_of(expression, SetTable())
