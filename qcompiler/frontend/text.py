"""How a language model reads and writes text: tokenizer, chat template, special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedModel
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    GGUF_TOKENIZER_MAPPING,
    convert_gguf_tokenizer,
)

from qcompiler.core.errors import CaptureError
from qcompiler.frontend.gguf_file import GgufFile

END_KEYS = ("eos", "eot", "eom")
"""Tokens of a GGUF file that end an answer: of the text, of the turn, of the message."""

VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model")


@dataclass(frozen=True, kw_only=True)
class TextInfo:
    """Tokenizer as the text of tokenizer.json, chat template, and the ids that begin and end text.

    begin_token is None where a text begins without one.
    """

    tokenizer_json: str | None = None
    chat_template: str | None = None
    begin_token: int | None = None
    end_tokens: tuple[int, ...] = ()


def text_of_folder(folder: Path) -> TextInfo:
    """Read what a Hugging Face folder says about text; a folder may say nothing.

    Raises:
        CaptureError: a file is damaged, or the tokenizer is of a kind that cannot be converted.
    """
    tokenizer_json = _tokenizer_json(folder)
    settings = read_json(folder / "tokenizer_config.json")
    model = read_json(folder / "config.json")
    generation = read_json(folder / "generation_config.json")
    tokenizer = None if tokenizer_json is None else _load(tokenizer_json, folder)
    named = _token_text(settings.get("eos_token"))
    own_end = tokenizer.token_to_id(named) if tokenizer is not None and named else None
    begin = _token_text(settings.get("bos_token"))
    begin_id = tokenizer.token_to_id(begin) if tokenizer is not None and begin else None
    begin_id = model.get("bos_token_id") if begin_id is None else begin_id
    return TextInfo(
        tokenizer_json=tokenizer_json,
        chat_template=_chat_template(folder, settings),
        begin_token=begin_id if _begins(tokenizer, begin_id, settings) else None,
        end_tokens=_ids([own_end, generation.get("eos_token_id"), model.get("eos_token_id")]),
    )


def text_of_gguf(file: GgufFile) -> TextInfo:
    """Read what a GGUF file says about text.

    Raises:
        CaptureError: its tokenizer is of a kind that cannot be converted.
    """
    metadata = file.metadata
    ends = _ids(metadata.get(f"tokenizer.ggml.{key}_token_id") for key in END_KEYS)
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        return TextInfo(end_tokens=ends)
    table = GGUF_TOKENIZER_MAPPING["tokenizer"]
    parts = {
        name: metadata[f"tokenizer.{key}"]
        for key, name in table.items()
        if f"tokenizer.{key}" in metadata
    }
    try:
        tokenizer, _ = convert_gguf_tokenizer(file.architecture, parts)
    except Exception as error:
        raise CaptureError(f"the tokenizer in {file.path} cannot be converted: {error}") from error
    # Vocabularies of the sentencepiece kind begin with a token unless they say otherwise.
    begins = metadata.get("tokenizer.ggml.add_bos_token", kind == "llama")
    return TextInfo(
        tokenizer_json=tokenizer.to_str(),
        chat_template=metadata.get("tokenizer.chat_template"),
        begin_token=metadata.get("tokenizer.ggml.bos_token_id") if begins else None,
        end_tokens=ends,
    )


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; a file that is not there is an empty one.

    Raises:
        CaptureError: it is no JSON object.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CaptureError(f"{file} is damaged ({error}); download it again") from error
    if not isinstance(content, dict):
        raise CaptureError(f"{file} is damaged (it holds no JSON object); download it again")
    return content


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CaptureError(f"{file} is damaged ({error}); download it again") from error


def _tokenizer_json(folder: Path) -> str | None:
    if (folder / "tokenizer.json").is_file():
        return _read_text(folder / "tokenizer.json")
    if not any((folder / name).is_file() for name in VOCABULARIES):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        return str(tokenizer.backend_tokenizer.to_str())
    except Exception as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise CaptureError(
            f"the tokenizer in {folder} cannot be converted to tokenizer.json: {reason}"
        ) from error


def _load(text: str, folder: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(text)
    except Exception as error:
        raise CaptureError(
            f"{folder / 'tokenizer.json'} is damaged ({error}); download it again"
        ) from error


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return _read_text(folder / "chat_template.jinja")
    template = settings.get("chat_template") or read_json(folder / "chat_template.json").get(
        "chat_template"
    )
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template


def _begins(tokenizer: Tokenizer | None, begin: int | None, settings: dict[str, Any]) -> bool:
    """Say whether texts begin with the token `begin`, by the tokenizer's rules or its settings."""
    if begin is None or tokenizer is None:
        return False
    if settings.get("add_bos_token") is not None:
        return bool(settings["add_bos_token"])
    ids = tokenizer.encode("a").ids
    return bool(ids) and ids[0] == begin


def _token_text(token: Any) -> str | None:
    text: str | None = token["content"] if isinstance(token, dict) else token
    return text


def _ids(given: Iterable[Any]) -> tuple[int, ...]:
    """Flatten ids and lists of ids, each once, in order."""
    flat: list[int] = []
    for entry in given:
        flat += entry if isinstance(entry, list) else [] if entry is None else [entry]
    return tuple(dict.fromkeys(int(i) for i in flat))


def end_tokens_of(model: PreTrainedModel) -> tuple[int, ...]:
    """Return the ids that end text for a model in memory, as its generation settings say first."""
    generation = getattr(model, "generation_config", None)
    return _ids([getattr(generation, "eos_token_id", None), model.config.eos_token_id])
