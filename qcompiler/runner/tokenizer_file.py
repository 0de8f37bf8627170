"""A tokenizer.json as the file that the runner reads; what the runner does not know is refused.

The library writes a tokenizer out with all its settings first, so that files of older versions,
which leave some out, mean the same as they do to the library.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from qcompiler.core.errors import UnsupportedError
from qcompiler.runner.binary import BinaryWriter
from qcompiler.runner.characters import numeric_characters
from qcompiler.runner.composition import composition
from qcompiler.runner.pattern import (
    GPT2,
    Instruction,
    SetTable,
    literal_program,
    program_of,
    set_program,
)

MAGIC = b"qc-tokenizer\0\0\0\0"
VERSION = 1
NONE = 0xFFFFFFFF

Part = dict[str, Any]
"""One component as tokenizer.json has it."""

_BEHAVIOURS = ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_SCHEMES = ("always", "never", "first")


def encode_tokenizer(tokenizer: Tokenizer) -> bytes:
    """Return the content of the runner's tokenizer file.

    Raises:
        UnsupportedError: it has a component that the runner does not know; names it.
    """
    parts = json.loads(tokenizer.to_str())
    out = BinaryWriter()
    out.number(VERSION)
    _write_added_tokens(out, parts["added_tokens"], tokenizer)
    _write_normalizer(out, parts["normalizer"])
    _write_pre_tokenizer(out, parts["pre_tokenizer"])
    _write_model(out, parts["model"])
    _write_texts(out, parts, tokenizer)
    _write_decoder(out, parts["decoder"])
    for ids in _around(tokenizer):
        out.numbers(ids)
    return MAGIC + out.content()


def _refuse(kind: str, part: Part, detail: str = "") -> UnsupportedError:
    return UnsupportedError(
        f"the tokenizer's {kind} is {part.get('type')}{detail}, which the runner does not know; "
        "run the artifact from Python"
    )


def _flat(part: Part | None, key: str) -> list[Part]:
    """Return a component's steps: those of a sequence one by one."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for inner in part[key] for step in _flat(inner, key)]
    return [part]


def _write_added_tokens(out: BinaryWriter, added: list[Part], tokenizer: Tokenizer) -> None:
    out.number(len(added))
    for token in added:
        if token["single_word"]:
            raise UnsupportedError(
                f"the tokenizer's token {token['content']} is a whole word only (single_word), "
                "which the runner does not know; run the artifact from Python"
            )
        content = token["content"]
        if token["normalized"] and tokenizer.normalizer is not None:
            content = tokenizer.normalizer.normalize_str(content)
        flags = [token["normalized"], token["lstrip"], token["rstrip"]]
        out.number(token["id"])
        out.number(sum(int(flag) << i for i, flag in enumerate(flags)))
        out.text(content)


# -- what is done to a text before it is split -----------------------------------------------------


def _write_normalizer(out: BinaryWriter, part: Part | None) -> None:
    steps = _flat(part, "normalizers")
    out.number(len(steps))
    for step in steps:
        if step["type"] == "Prepend":
            out.number(0)
            out.text(step["prepend"])
        elif step["type"] == "Replace":
            out.number(1)
            out.text(_literal(step, "normalizer"))
            out.text(step["content"])
        elif step["type"] == "NFC":
            tables = composition()
            out.number(2)
            out.numbers([n for row in tables.decompositions for n in (len(row) - 1, *row)])
            out.rows(tables.pairs, 3)
            out.rows(tables.classes, 2)
        else:
            raise _refuse("normalizer", step)


def _literal(step: Part, kind: str) -> str:
    """Return the text that is replaced."""
    text: str | None = step["pattern"].get("String")
    if not text:
        raise _refuse(kind, step, " with a regular expression")
    return text


# -- how a text is split ---------------------------------------------------------------------------


def _write_pre_tokenizer(out: BinaryWriter, part: Part | None) -> None:
    sets = SetTable()
    steps: list[Callable[[BinaryWriter], None]] = []
    for step in _flat(part, "pretokenizers"):
        steps += _pre_tokenizer_steps(step, sets)
    out.number(len(sets.sets))
    for ranges in sets.sets:
        out.rows(ranges, 2)
    out.number(len(steps))
    for write in steps:
        write(out)


def _pre_tokenizer_steps(step: Part, sets: SetTable) -> list[Callable[[BinaryWriter], None]]:
    kind = step["type"]
    if kind == "ByteLevel":
        space = [_prefix_space] if step["add_prefix_space"] else []
        split = [_split(program_of(GPT2, sets), "Isolated")] if step["use_regex"] else []
        return [*space, *split, _byte_characters]
    if kind == "Digits":
        program = set_program(numeric_characters(), sets, many=not step["individual_digits"])
        return [_split(program, "Isolated")]
    if kind == "Split":
        text = step["pattern"].get("String")
        program = (
            literal_program(text, sets) if text else program_of(step["pattern"]["Regex"], sets)
        )
        return [_split(program, step["behavior"], inverted=step["invert"])]
    if kind == "Metaspace":
        return [_metaspace(step)]
    raise _refuse("pre-tokenizer", step)


def _split(
    program: list[Instruction], behaviour: str, *, inverted: bool = False
) -> Callable[[BinaryWriter], None]:
    def write(out: BinaryWriter) -> None:
        out.number(0)
        out.number(_BEHAVIOURS.index(behaviour))
        out.number(int(inverted))
        out.rows(program, 3)

    return write


def _byte_characters(out: BinaryWriter) -> None:
    """Every byte becomes a character that can be seen."""
    out.number(1)


def _prefix_space(out: BinaryWriter) -> None:
    out.number(2)


def _metaspace(step: Part) -> Callable[[BinaryWriter], None]:
    def write(out: BinaryWriter) -> None:
        out.number(3)
        out.text(step["replacement"])
        out.number(_SCHEMES.index(step["prepend_scheme"]))
        out.number(int(step["split"]))

    return write


# -- tokens and merges -----------------------------------------------------------------------------


def _write_model(out: BinaryWriter, model: Part) -> None:
    if model["type"] != "BPE":
        raise _refuse("model", model)
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model[name]:
            raise _refuse("model", model, f" with {name}")
    vocabulary: dict[str, int] = model["vocab"]
    unknown = model["unk_token"]
    out.number(NONE if unknown is None else vocabulary.get(unknown, NONE))
    for name in ("fuse_unk", "ignore_merges"):
        out.number(int(model[name]))
    bytes_as_tokens = [vocabulary.get(f"<0x{byte:02X}>", NONE) for byte in range(256)]
    out.numbers(bytes_as_tokens if model["byte_fallback"] else [])
    # In the order of their bytes, for a binary search.
    out.numbers([vocabulary[text] for text in sorted(vocabulary, key=str.encode)])
    merges = [
        (vocabulary[left], vocabulary[right], rank, vocabulary[left + right])
        for rank, (left, right) in enumerate(model["merges"])
    ]
    # A pair that is listed twice has its later rank, as in the library.
    last = {row[:2]: row for row in merges}
    out.rows(sorted(last.values()), 4)


def _write_texts(out: BinaryWriter, parts: Part, tokenizer: Tokenizer) -> None:
    """Write the text of every token by its number, which exist, and which are special."""
    texts: dict[int, str] = {number: text for text, number in parts["model"]["vocab"].items()}
    shown: dict[int, str] = {}
    for token in parts["added_tokens"]:
        # The library shows such a token as its normaliser leaves it.
        text = tokenizer.id_to_token(token["id"]) or token["content"]
        if texts.setdefault(token["id"], text) != text:
            shown[token["id"]] = text
    special = {token["content"] for token in parts["added_tokens"] if token["special"]}
    count = max(texts, default=-1) + 1
    pieces = [texts.get(number, "").encode() for number in range(count)]
    out.numbers(np.cumsum([0, *map(len, pieces)]))
    out.blob(b"".join(pieces))
    seen = texts | shown
    out.numbers(
        [int(number in seen) | int(seen.get(number) in special) << 1 for number in range(count)]
    )
    out.number(len(shown))
    for number, text in shown.items():
        out.number(number)
        out.text(text)


# -- from tokens to text ---------------------------------------------------------------------------


def _write_decoder(out: BinaryWriter, part: Part | None) -> None:
    steps = _flat(part, "decoders")
    out.number(len(steps))
    for step in steps:
        kind = step["type"]
        if kind == "Replace":
            out.number(0)
            out.text(_literal(step, "decoder"))
            out.text(step["content"])
        elif kind == "ByteFallback":
            out.number(1)
        elif kind == "Fuse":
            out.number(2)
        elif kind == "Strip":
            out.number(3)
            out.text(step["content"])
            out.number(step["start"])
            out.number(step["stop"])
        elif kind == "Metaspace":
            out.number(4)
            out.text(step["replacement"])
            out.number(int(step["prepend_scheme"] != "never"))
        elif kind == "ByteLevel":
            out.number(5)
        else:
            raise _refuse("decoder", step)


# -- tokens around a text --------------------------------------------------------------------------


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the tokens that are put before and behind every text."""
    found: set[tuple[tuple[int, ...], tuple[int, ...]]] | None = None
    for text in ("a", "one two", "3."):
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        whole = tokenizer.encode(text, add_special_tokens=True).ids
        places = range(len(whole) - len(plain) + 1)
        fitting = {
            (tuple(whole[:at]), tuple(whole[at + len(plain) :]))
            for at in places
            if whole[at : at + len(plain)] == plain
        }
        found = fitting if found is None else found & fitting
    if not found or len(found) > 1:
        raise UnsupportedError(
            "the tokenizer's post-processor does more than to put tokens around a text, which the "
            "runner does not know; run the artifact from Python"
        )
    before, behind = found.pop()
    return list(before), list(behind)
