"""Tables for Unicode's normal form C, as the tokenizers library has it."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from tokenizers import normalizers

_HANGUL = range(0xAC00, 0xD7A4)  # put together by arithmetic
_SURROGATES = range(0xD800, 0xE000)
_LAST = 0x30000  # nothing from there on is taken apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """How characters are taken apart and put together.

    decompositions: character, then what it becomes in the end. pairs: two characters and the one
    that they become. classes: character and its combining class, if that is not 0.
    """

    decompositions: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[int, int, int], ...]
    classes: tuple[tuple[int, int], ...]


def composition() -> Composition:
    """Ask the library about every character; combining classes are Python's."""
    apart, together = normalizers.NFD(), normalizers.NFC()
    decompositions, pairs, classes = [], [], []
    for code in range(_LAST):
        if code in _SURROGATES:
            continue
        letter = chr(code)
        if kind := unicodedata.combining(letter):
            classes.append((code, kind))
        if code in _HANGUL:
            continue
        parts = apart.normalize_str(letter)
        if parts == letter:
            continue
        decompositions.append((code, *map(ord, parts)))
        first = together.normalize_str(parts[:-1])
        if len(first) == 1 and together.normalize_str(parts) == letter:
            pairs.append((ord(first), ord(parts[-1]), code))
    return Composition(
        decompositions=tuple(decompositions), pairs=tuple(sorted(pairs)), classes=tuple(classes)
    )
