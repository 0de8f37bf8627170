"""Tokenizers, chat templates and special tokens, from folders and GGUF metadata."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.models import WordLevel

from qcompiler.core.errors import CaptureError
from qcompiler.frontend.gguf_file import GgufFile
from qcompiler.frontend.text import TextInfo, text_of_folder, text_of_gguf

VOCABULARY = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "<eot>": 4}


def write(folder: Path, *, begins: bool = False, **files: Any) -> None:
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_a_folder_may_say_nothing_about_text(tmp_path: Path) -> None:
    assert text_of_folder(tmp_path) == TextInfo()


def test_the_tokenizer_is_kept_to_the_letter(tmp_path: Path) -> None:
    write(tmp_path)
    text = text_of_folder(tmp_path).tokenizer_json
    assert text == (tmp_path / "tokenizer.json").read_text()


def test_end_tokens_are_gathered_from_every_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        tokenizer_config={"eos_token": {"content": "<eot>"}},
        generation_config={"eos_token_id": [1, 4]},
        config={"eos_token_id": 1},
    )
    assert text_of_folder(tmp_path).end_tokens == (4, 1)


@pytest.mark.parametrize(
    ("begins", "settings", "expected"),
    [
        (True, {"bos_token": "<s>"}, 0),
        (False, {"bos_token": "<s>"}, None),
        (False, {"bos_token": "<s>", "add_bos_token": True}, 0),
        (True, {"bos_token": "<s>", "add_bos_token": False}, None),
        (True, {}, None),
    ],
)
def test_texts_begin_as_the_tokenizer_does(
    tmp_path: Path, begins: bool, settings: dict[str, object], expected: int | None
) -> None:
    write(tmp_path, begins=begins, tokenizer_config=settings)
    assert text_of_folder(tmp_path).begin_token == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config": {"chat_template": "T"}}, "T"),
        ({"chat_template": {"chat_template": "U"}}, "U"),
        (
            {
                "tokenizer_config": {
                    "chat_template": [
                        {"name": "tools", "template": "V"},
                        {"name": "default", "template": "W"},
                    ]
                }
            },
            "W",
        ),
    ],
)
def test_chat_templates_from_any_file(
    tmp_path: Path, files: dict[str, object], expected: str | None
) -> None:
    write(tmp_path, **files)
    assert text_of_folder(tmp_path).chat_template == expected


def test_a_template_of_its_own_goes_first(tmp_path: Path) -> None:
    write(tmp_path, tokenizer_config={"chat_template": "T"})
    (tmp_path / "chat_template.jinja").write_text("{{ x }}")
    assert text_of_folder(tmp_path).chat_template == "{{ x }}"


def test_older_tokenizers_are_converted(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    text = text_of_folder(tmp_path).tokenizer_json
    assert text is not None
    assert Tokenizer.from_str(text).encode("hello world").ids == [2, 5, 6, 3]


def test_a_tokenizer_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CaptureError, match=f"tokenizer in {tmp_path} cannot be converted"):
        text_of_folder(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_config", "generation_config"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / f"{name}.json").write_text("{")
    with pytest.raises(CaptureError, match=rf"{name}\.json is damaged"):
        text_of_folder(tmp_path)


def gguf_file(**metadata: object) -> GgufFile:
    said = {f"tokenizer.{key.replace('__', '.')}": value for key, value in metadata.items()}
    return cast(
        GgufFile, SimpleNamespace(metadata=said, architecture="llama", path=Path("tiny.gguf"))
    )


BYTE_PAIRS = {
    "ggml__model": "gpt2",
    "ggml__tokens": ["h", "i", "hi", "<|end|>", "<|turn|>"],
    "ggml__token_type": [1, 1, 1, 3, 3],
    "ggml__merges": ["h i"],
    "ggml__bos_token_id": 3,
    "ggml__eos_token_id": 3,
    "ggml__eot_token_id": 4,
    "chat_template": "T",
}


def test_gguf_metadata_make_a_tokenizer() -> None:
    info = text_of_gguf(gguf_file(**BYTE_PAIRS))
    assert info.tokenizer_json is not None
    tokenizer = Tokenizer.from_str(info.tokenizer_json)
    assert isinstance(tokenizer.model, models.BPE)
    assert tokenizer.encode("hi<|turn|>").ids == [2, 4]
    assert info.end_tokens == (3, 4)
    assert info.chat_template == "T"
    assert info.begin_token is None


def test_gguf_says_whether_texts_begin_with_a_token() -> None:
    assert text_of_gguf(gguf_file(**BYTE_PAIRS, ggml__add_bos_token=True)).begin_token == 3


def test_gguf_may_say_nothing_about_text() -> None:
    assert text_of_gguf(gguf_file()) == TextInfo()


def test_an_unknown_gguf_tokenizer_is_named() -> None:
    with pytest.raises(CaptureError, match=r"tokenizer in tiny\.gguf cannot be converted.*'rwkv'"):
        text_of_gguf(gguf_file(ggml__model="rwkv", ggml__tokens=["a"]))
