r"""Regular expressions of pre-tokenisers, as a small program that a loop of C++ can run.

What such expressions are made of is little: characters and sets of them, choices, repetitions and
looking ahead. Anything else is refused by name. The program tries what comes first, first, and goes
back where that fails, as the library's engine (Oniguruma) does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum

from qcompiler.core.errors import UnsupportedError
from qcompiler.runner.characters import Ranges, characters_of, either_case, just

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `ByteLevel` splits by."""

_MOST = 64  # of how often something may be repeated by number: each time is spelled out


class Op(IntEnum):
    """What an instruction does; its two numbers are given in brackets."""

    MATCH = 0  # []: all has matched
    SET = 1  # [set]: take one character that is in the set
    SPLIT = 2  # [first, second]: go on at the first; if that fails, at the second
    JUMP = 3  # [place]: go on there
    AHEAD = 4  # [1 if wanted, place]: what follows up to MATCH is, or is not, here; go on there
    ATOMIC = 5  # [0, place]: take what follows up to MATCH and never go back into it; go on there


Instruction = tuple[int, int, int]


@dataclass
class SetTable:
    """The sets of characters that programs use, each once."""

    sets: list[Ranges] = field(default_factory=list)

    def index(self, ranges: Ranges) -> int:
        """Return the number of a set."""
        if ranges not in self.sets:
            self.sets.append(ranges)
        return self.sets.index(ranges)


def program_of(expression: str, sets: SetTable) -> list[Instruction]:
    """Translate an expression.

    Raises:
        UnsupportedError: it has something that there is no instruction for, or matches nothing at
            all somewhere.
    """
    parser = _Parser(expression, sets)
    code, nullable = parser.choice(ignore_case=False)
    if parser.rest:
        raise parser.refuse(parser.rest[0])
    if nullable:
        raise UnsupportedError(f"the tokenizer's pattern {expression} may match nothing")
    return [*code, (Op.MATCH, 0, 0)]


def literal_program(text: str, sets: SetTable) -> list[Instruction]:
    """Return the program of a text that stands for itself."""
    return [*((Op.SET, sets.index(just(c)), 0) for c in text), (Op.MATCH, 0, 0)]


def set_program(ranges: Ranges, sets: SetTable, *, many: bool) -> list[Instruction]:
    """Return the program of one character of a set, or of as many as there are."""
    taken: Instruction = (Op.SET, sets.index(ranges), 0)
    again: list[Instruction] = [(Op.SPLIT, 0, 2)] if many else []
    return [taken, *again, (Op.MATCH, 0, 0)]


_Code = list[Instruction]
_Parsed = tuple[_Code, bool]
"""Instructions whose places count from the first of them, and whether they may take nothing."""

_QUANTIFIER = re.compile(r"(\?|\*|\+|\{(\d*)(,?)(\d*)\})([?+]?)")
_ESCAPED_SET = re.compile(r"\\(?:[pP]\{\^?\w+\}|[sSdDwWhH])")
_ESCAPED_CODE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|x\{([0-9A-Fa-f]+)\}|x([0-9A-Fa-f]{2}))")
_NAMED = {"r": "\r", "n": "\n", "t": "\t", "f": "\f", "v": "\v"}


class _Parser:
    def __init__(self, expression: str, sets: SetTable) -> None:
        self._whole = expression
        self._sets = sets
        self.rest = expression

    def refuse(self, what: str) -> UnsupportedError:
        return UnsupportedError(
            f"the tokenizer's pattern {self._whole} has {what!r}, which the runner does not know"
        )

    def choice(self, *, ignore_case: bool) -> _Parsed:
        """Read alternatives up to the end or a bracket that closes."""
        options = [self._sequence(ignore_case)]
        while self._take("|"):
            options.append(self._sequence(ignore_case))
        code, nullable = options.pop()
        for option, may in reversed(options):
            jump = (Op.JUMP, 1 + len(code), 0)
            split = (Op.SPLIT, 1, 2 + len(option))
            code = _joined([split], option, [jump], code)
            nullable = nullable or may
        return code, nullable

    def _sequence(self, ignore_case: bool) -> _Parsed:
        code: _Code = []
        nullable = True
        while self.rest and self.rest[0] not in "|)":
            atom, may = self._atom(ignore_case)
            atom, may = self._repeated(atom, may)
            code, nullable = _joined(code, atom), nullable and may
        return code, nullable

    def _atom(self, ignore_case: bool) -> _Parsed:
        if self.rest[0] == "(":
            return self._group(ignore_case)
        if self.rest[0] == "[":
            end = _class_end(self.rest)
            return self._set(self._cut(end), ignore_case)
        if found := _ESCAPED_SET.match(self.rest):
            return self._set(self._cut(found.end()), ignore_case)
        if self.rest[0] == ".":
            return self._set(self._cut(1), ignore_case)
        if found := _ESCAPED_CODE.match(self.rest):
            self._cut(found.end())
            return self._letter(chr(int(next(filter(None, found.groups())), 16)), ignore_case)
        if self.rest[0] == "\\" and len(self.rest) > 1:
            escaped = self._cut(2)[1]
            if escaped.isalnum() and escaped not in _NAMED:
                raise self.refuse(f"\\{escaped}")
            return self._letter(_NAMED.get(escaped, escaped), ignore_case)
        if self.rest[0] in "^$\\*+?{":
            raise self.refuse(self.rest[0])
        return self._letter(self._cut(1), ignore_case)

    def _set(self, expression: str, ignore_case: bool) -> _Parsed:
        ranges = characters_of(f"(?i:{expression})" if ignore_case else expression)
        return [(Op.SET, self._sets.index(ranges), 0)], False

    def _letter(self, letter: str, ignore_case: bool) -> _Parsed:
        ranges = either_case(letter) if ignore_case else just(letter)
        return [(Op.SET, self._sets.index(ranges), 0)], False

    def _group(self, ignore_case: bool) -> _Parsed:
        for opening in ("(?!", "(?=", "(?>", "(?:", "(?i:"):
            if self._take(opening):
                break
        else:
            if self.rest.startswith("(?"):
                raise self.refuse(self.rest[:4])
            opening = self._cut(1)
        inner, nullable = self.choice(ignore_case=ignore_case or opening == "(?i:")
        if not self._take(")"):
            raise self.refuse("(")
        if opening in {"(?!", "(?="}:
            return _enclosed(Op.AHEAD, int(opening == "(?="), inner), True
        if opening == "(?>":
            return _enclosed(Op.ATOMIC, 0, inner), nullable
        return inner, nullable

    def _repeated(self, atom: _Code, nullable: bool) -> _Parsed:
        found = _QUANTIFIER.match(self.rest)
        if found is None:
            return atom, nullable
        self._cut(found.end())
        sign, least_text, comma, most_text, manner = found.groups()
        # After numbers in braces, + repeats all that again; so does ? after a single number.
        if nullable or (sign[0] == "{" and manner and (manner == "+" or not comma)):
            raise self.refuse(found[0])
        least, most = {"?": (0, 1), "*": (0, None), "+": (1, None)}.get(sign, (-1, -1))
        if least < 0:
            least = int(least_text or 0)
            most = (int(most_text) if most_text else None) if comma else least
            if not (least_text or most_text) or max(least, most or 0) > _MOST:
                raise self.refuse(found[0])
        code = _times(atom, least, most, lazy=manner == "?")
        if manner == "+":
            code = _enclosed(Op.ATOMIC, 0, code)
        return code, least == 0

    def _take(self, text: str) -> bool:
        if not self.rest.startswith(text):
            return False
        self.rest = self.rest[len(text) :]
        return True

    def _cut(self, count: int) -> str:
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken


def _class_end(text: str) -> int:
    """Return where the set that a text begins with ends; there are sets within sets."""
    depth, place = 0, 0
    while place < len(text):
        if text[place] == "\\":
            place += 1
        elif text[place] == "[":
            depth += 1
        elif text[place] == "]":
            depth -= 1
            if not depth:
                return place + 1
        place += 1
    raise UnsupportedError(f"the tokenizer's pattern has a set that does not end: {text}")


def _times(atom: _Code, least: int, most: int | None, *, lazy: bool) -> _Code:
    """Repeat instructions: spelled out as often as they must be, then as choices to go on."""

    def either(on: int, out: int) -> Instruction:
        return (Op.SPLIT, out, on) if lazy else (Op.SPLIT, on, out)

    parts = [atom] * least
    if most is None:
        parts.append([either(1, len(atom) + 2), *_moved(atom, 1), (Op.JUMP, 0, 0)])
    else:
        left = (most - least) * (len(atom) + 1)
        for _ in range(most - least):
            parts.append([either(1, left), *_moved(atom, 1)])
            left -= len(atom) + 1
    return _joined(*parts)


def _enclosed(op: Op, wanted: int, inner: _Code) -> _Code:
    return [(op, wanted, len(inner) + 2), *_moved(inner, 1), (Op.MATCH, 0, 0)]


def _joined(*parts: _Code) -> _Code:
    code: _Code = []
    for part in parts:
        code += _moved(part, len(code))
    return code


def _moved(code: _Code, by: int) -> _Code:
    """Return instructions whose places count from `by` earlier."""
    moved: _Code = []
    for op, first, second in code:
        if op == Op.SPLIT:
            moved.append((op, first + by, second + by))
        elif op == Op.JUMP:
            moved.append((op, first + by, 0))
        elif op in {Op.AHEAD, Op.ATOMIC}:
            moved.append((op, first, second + by))
        else:
            moved.append((op, first, second))
    return moved
