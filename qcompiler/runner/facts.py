"""What the runner has to know of an artifact: one file of plain lines, and a hash of them.

Each line is a word and its values, split by spaces; a text is the rest of its line, with \\n, \\t,
\\r and \\\\ for what would break it. The last line is the sha256 of all before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from qcompiler.core.artifact import (
    CacheSpec,
    EntryFunction,
    FileRecord,
    Manifest,
    spec_bytes,
    weight_offsets,
)
from qcompiler.core.errors import ArtifactError
from qcompiler.runner.chat_pieces import ChatPieces

FACTS = "runner.txt"
VERSION = 1
"""Version of the layout; raised when an older runner could misread a newer file."""


def encode_facts(
    manifest: Manifest,
    weights: Path,
    files: Mapping[str, FileRecord],
    chat: ChatPieces | str,
    begin_token: int | None,
) -> bytes:
    """Return the content of the facts file.

    `files` are those that lie beside it; `chat` is a sentence where there is no chatting, and says
    why.
    """
    lines = [
        f"qcompiler-runner {VERSION}",
        *_model(manifest, begin_token),
        *_chat(chat),
        *_files(files),
        *(_cache(cache) for cache in manifest.model.kv),
        *(_function(name, manifest.functions[name]) for name in ("prefill", "decode")),
        *_weights(manifest, weights),
    ]
    text = "".join(f"{line}\n" for line in lines).encode()
    return text + f"sha256 {hashlib.sha256(text).hexdigest()}\n".encode()


def _model(manifest: Manifest, begin_token: int | None) -> Iterator[str]:
    model = manifest.model
    yield f"name {_escaped(model.name)}"
    yield f"compiler {manifest.compiler}"
    yield f"tvm {manifest.requires.get('apache-tvm', '')}"
    yield f"target {manifest.target.name}"
    yield f"arch {manifest.target.arch}"
    for feature in manifest.target.features:
        yield f"feature {feature}"
    yield f"vocab_size {model.vocab_size}"
    yield f"max_context {model.max_context}"
    for token in model.end_tokens:
        yield f"end_token {token}"
    if begin_token is not None:
        yield f"begin_token {begin_token}"


def _chat(chat: ChatPieces | str) -> Iterator[str]:
    if isinstance(chat, str):
        yield f"chat_refused {_escaped(chat)}"
        return
    yield f"chat_opening {_escaped(chat.opening)}"
    yield f"chat_ending {_escaped(chat.ending)}"
    if chat.system:
        yield f"chat_before_system {_escaped(chat.before_system)}"
        yield f"chat_after_system {_escaped(chat.after_system)}"
    if chat.turns:
        yield f"chat_before_answer {_escaped(chat.before_answer)}"
        yield f"chat_after_answer {_escaped(chat.after_answer)}"
    for role in sorted(chat.trimmed):
        yield f"chat_trimmed {role}"


def _files(files: Mapping[str, FileRecord]) -> Iterator[str]:
    for name, record in sorted(files.items()):
        yield f"file {name} {record.bytes} {record.sha256}"


def _cache(cache: CacheSpec) -> str:
    return f"cache {cache.heads} {cache.row} {cache.dtype}"


def _function(name: str, entry: EntryFunction) -> str:
    if entry.step is None:
        return f"function {name} machine {name}"
    step = entry.step
    return f"function {name} step {step.symbol} {step.shared_bytes} {step.thread_bytes}"


def _weights(manifest: Manifest, weights: Path) -> Iterator[str]:
    places = weight_offsets(weights)
    for spec in manifest.weights:
        offset, size = places.get(spec.name, (0, -1))
        if size != spec_bytes(spec):
            raise ArtifactError(
                f"the artifact's weights do not fit its manifest: {spec.name} should have "
                f"{spec_bytes(spec)} bytes; compile the model again"
            )
        shape = " ".join(map(str, spec.shape))
        yield f"weight {spec.dtype} {offset} {len(spec.shape)} {shape}{' ' * bool(shape)}" + (
            _escaped(spec.name)
        )


def _escaped(text: str) -> str:
    for letter, written in (("\\", "\\\\"), ("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r")):
        text = text.replace(letter, written)
    return text
