"""Sets of characters, as the tokenizers library understands them.

The library itself is asked, character by character: its Unicode may be another version than
Python's, and what it takes for a letter decides how a text is split.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tokenizers import Regex, pre_tokenizers

from qcompiler.core.errors import UnsupportedError

Ranges = tuple[tuple[int, int], ...]
"""First and last code points, in order."""

_BLANK = 0x40000, 0xE0000
"""No character is defined from the first to before the second: the first stands for all."""
_PRIVATE = 0xF0000, 0x110000
_SURROGATES = range(0xD800, 0xE000)


@cache
def _all_characters() -> str:
    codes = [*range(_BLANK[0] + 1), *range(_BLANK[1], _PRIVATE[0] + 1)]
    return "".join(chr(code) for code in codes if code not in _SURROGATES)


@cache
def characters_of(expression: str) -> Ranges:
    r"""Return the characters that an expression for a single one matches, such as \p{L} or [^\s].

    Raises:
        UnsupportedError: the library does not understand it.
    """
    try:
        wanted = Regex(f"(?:{expression})+")
    except Exception as error:  # the library raises nothing more precise
        raise UnsupportedError(f"its pattern {expression} is not understood: {error}") from None
    split = pre_tokenizers.Split(wanted, behavior="removed", invert=True)
    return _ranges(split.pre_tokenize_str)


@cache
def numeric_characters() -> Ranges:
    """Return what the pre-tokenizer `Digits` takes for a digit."""
    digits = pre_tokenizers.Digits(individual_digits=False)
    # Runs of digits and of all else alternate; the text begins with the latter.
    pieces = [piece for piece, _ in digits.pre_tokenize_str(_all_characters())]
    return _spread([(ord(piece[0]), ord(piece[-1])) for piece in pieces[1::2]])


def either_case(letter: str) -> Ranges:
    """Return the characters that a letter stands for where case does not matter."""
    near = [c for c in _all_characters()[:0x3000] if c.casefold() == letter.casefold()]
    found = pre_tokenizers.Split(
        Regex(f"(?i:{_escaped(letter)})"), behavior="removed", invert=True
    ).pre_tokenize_str("".join(near))
    return tuple((ord(c), ord(c)) for c in sorted(piece for piece, _ in found))


def just(letter: str) -> Ranges:
    """Return a single character."""
    return ((ord(letter), ord(letter)),)


def _escaped(letter: str) -> str:
    return letter if letter.isalnum() else rf"\x{{{ord(letter):x}}}"


def _ranges(split: Callable[[str], list[tuple[str, tuple[int, int]]]]) -> Ranges:
    return _spread([(ord(piece[0]), ord(piece[-1])) for piece, _ in split(_all_characters())])


def _spread(pieces: list[tuple[int, int]]) -> Ranges:
    """Return ranges in which the characters that stood for many have become those."""
    spread: list[tuple[int, int]] = []
    for first, last in pieces:
        for begin, end in (_BLANK, _PRIVATE):
            if last == begin:
                last = end - 1
        spread.append((first, last))
    return tuple(spread)
