"""Write the runner's folder: its sources, the libraries it is linked with, and what it runs."""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import secrets
import shutil
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

from tokenizers import Tokenizer

import qcompiler
from qcompiler.core.artifact import (
    WEIGHTS,
    FileRecord,
    Manifest,
    read_manifest,
    verify_files,
)
from qcompiler.core.errors import ArtifactError, UsageError
from qcompiler.runner.chat_pieces import ChatPieces, NotPieces, chat_pieces
from qcompiler.runner.facts import FACTS, encode_facts
from qcompiler.runner.libraries import headers, libraries_for, licences
from qcompiler.runner.tokenizer_file import encode_tokenizer
from qcompiler.runtime.chat import model_template

MODEL = "model"
"""The folder in the runner's that it runs; the others hold what it is built of."""

TOKENIZER = "tokenizer.bin"
LIBRARY = "model.so"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedRunner:
    """What was written. notes: what the runner cannot do of what Python can, in sentences."""

    folder: Path
    notes: tuple[str, ...]


def export_runner(artifact: Path, folder: Path, *, libraries: Path | None = None) -> ExportedRunner:
    """Write to `folder` what a C++ compiler and CMake need to make a program that runs `artifact`.

    libraries: where libtvm_ffi.so lies for the artifact's machine, if it is another one.

    Raises:
        ArtifactError: the artifact is damaged.
        UnsupportedError: the runner does not know something that the artifact needs.
        UsageError: `folder` cannot be written to, or the artifact is no language model.
    """
    manifest = read_manifest(artifact)
    if manifest.kind != "causal-lm":
        raise UsageError(
            f"{artifact} is no language model, and the runner runs nothing else; "
            f"call it from Python: qcompiler.load('{artifact}')"
        )
    _check_destination(folder)
    verify_files(artifact, manifest)
    found = libraries_for(artifact, manifest, libraries)
    tokenizer = _tokenizer(artifact, manifest)
    chat, notes = _chat(manifest, tokenizer)
    place = Path(os.path.realpath(folder))
    partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
    try:
        _copy_sources(partial, manifest)
        (partial / "lib").mkdir()
        for name, library in found.items():
            shutil.copyfile(library, partial / "lib" / name)
        write_model(partial / MODEL, artifact, manifest, tokenizer, chat)
        _replace(partial, place)
    except OSError as error:
        raise ArtifactError(
            f"{folder} was not written: {error.strerror or error}; choose another place"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ExportedRunner(folder=folder, notes=notes)


def _check_destination(folder: Path) -> None:
    """Refuse a folder that holds something other than an earlier export."""
    if not folder.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {folder.parent} for {folder.name} to be written in")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose another place for the runner")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MODEL / FACTS).is_file():
        raise UsageError(
            f"{folder} holds something other than a runner, which is not overwritten; "
            "choose another place, or delete it first"
        )


def _tokenizer(artifact: Path, manifest: Manifest) -> Tokenizer | None:
    if "tokenizer.json" not in manifest.files:
        return None
    tokenizer = Tokenizer.from_file(os.fspath(artifact / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _chat(
    manifest: Manifest, tokenizer: Tokenizer | None
) -> tuple[ChatPieces | str, tuple[str, ...]]:
    """Return how the model is chatted with, or why not; and what a user should know of it."""
    name, source = manifest.model.name, manifest.model.chat_template
    if tokenizer is None:
        why = f"{name} was compiled without a tokenizer, so it takes tokens, not text"
        return why, (f"{why}: the runner has no --prompt for it",)
    if source is None:
        return f"{name} has no chat template", ()
    notes: tuple[str, ...] = ()
    try:
        pieces = chat_pieces(model_template(manifest.model, tokenizer))
    except (NotPieces, UsageError) as problem:
        why = f"the chat template of {name} cannot be used without Python: {problem}"
        return why, (f"{why}; the runner continues plain text only",)
    if not pieces.turns:
        notes += ("of a conversation, the runner answers the first message only",)
    if "strftime_now" in source:
        notes += ("the chat template names the date; the runner names that of the export",)
    return pieces, notes


def _copy_sources(folder: Path, manifest: Manifest) -> None:
    _copy_tree(importlib.resources.files("qcompiler.runner") / "source", folder)
    place = folder / "third_party"
    for name, path in {**headers(), **licences()}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place / name)
    (folder / "src" / "version.h").write_text(
        "// Written by qcompiler export.\n"
        "#pragma once\n"
        f'#define QC_COMPILER_VERSION "{qcompiler.__version__}"\n'
        f'#define QC_TVM_VERSION "{manifest.requires.get("apache-tvm", "")}"\n'
    )


def _copy_tree(source: Traversable, folder: Path) -> None:
    folder.mkdir()
    for entry in source.iterdir():
        if entry.is_dir():
            _copy_tree(entry, folder / entry.name)
        else:
            (folder / entry.name).write_bytes(entry.read_bytes())


def write_model(
    folder: Path,
    artifact: Path,
    manifest: Manifest,
    tokenizer: Tokenizer | None,
    chat: ChatPieces | str,
) -> None:
    folder.mkdir()
    records = {name: manifest.files[name] for name in (LIBRARY, WEIGHTS)}
    for name in records:
        shutil.copyfile(artifact / name, folder / name)
    if tokenizer is not None:
        content = encode_tokenizer(tokenizer)
        (folder / TOKENIZER).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        records[TOKENIZER] = FileRecord(sha256=digest, bytes=len(content))
    begin = manifest.model.begin_token
    facts = encode_facts(manifest, artifact / WEIGHTS, records, chat, begin)
    (folder / FACTS).write_bytes(facts)


def _replace(new: Path, place: Path) -> None:
    """Put what is in `new` in the place of what is there; what was built there stays."""
    if not place.exists():
        new.rename(place)
        return
    for entry in new.iterdir():
        old = place / entry.name
        if old.is_dir():
            shutil.rmtree(old)
        entry.replace(old)
