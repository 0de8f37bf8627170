"""Open the tokenizer that a model brings along."""

from __future__ import annotations

from tokenizers import Tokenizer

from qcompiler.core.errors import QCompilerError


def open_tokenizer(name: str, tokenizer_json: str | None) -> Tokenizer:
    """Return a model's tokenizer, with no limit that would cut a text, and no padding.

    Raises:
        QCompilerError: the model `name` has none.
    """
    if tokenizer_json is None:
        raise QCompilerError(
            f"{name} has no tokenizer; put its tokenizer.json into the model's folder"
        )
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
