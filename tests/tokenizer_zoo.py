"""Small tokenizers of the kinds that language models have, trained on the project's own pages."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


@cache
def pages() -> list[str]:
    """What tokenizers are trained on."""
    folder = Path(__file__).parent.parent / "docs"
    return [page.read_text(encoding="utf-8") for page in sorted(folder.glob("*.md"))]


def _trained(tokenizer: Tokenizer, alphabet: list[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, show_progress=False, special_tokens=["<unk>"]
    )
    tokenizer.train_from_iterator(pages(), trainer)
    return tokenizer


def _byte_level(
    pre: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    _trained(tokenizer, sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>"])
    tokenizer.add_tokens(
        [
            AddedToken("<|left|>", lstrip=True, special=True),
            AddedToken("<|right|>", rstrip=True, special=True),
            AddedToken("[both]", lstrip=True, rstrip=True, normalized=True),
            AddedToken("[plain]", normalized=True),
            "   ",
            "      ",
        ]
    )
    return tokenizer


def _split(*patterns: str) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, bytes_only])


def _begins(tokenizer: Tokenizer, token: str, end: str = "") -> Tokenizer:
    tokens = [(one, tokenizer.token_to_id(one)) for one in (token, end) if one]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A {end}".strip(), special_tokens=tokens
    )
    return tokenizer


def gpt2() -> Tokenizer:
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def gpt2_prefixed() -> Tokenizer:
    return _begins(_byte_level(pre_tokenizers.ByteLevel()), "<|begin|>", "<|end|>")


def digits() -> Tokenizer:
    parts = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    return _byte_level(pre_tokenizers.Sequence(parts))


def whole_digits() -> Tokenizer:
    parts = [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return _byte_level(pre_tokenizers.Sequence(parts))


def llama3() -> Tokenizer:
    tokenizer = _begins(_byte_level(_split(LLAMA3)), "<|begin|>")
    # What is a token as a whole is one, whatever merges say.
    text = tokenizer.to_str().replace('"ignore_merges":false', '"ignore_merges":true')
    assert '"ignore_merges":true' in text
    return Tokenizer.from_str(text)


def qwen2() -> Tokenizer:
    return _byte_level(_split(QWEN2), normalizers.NFC())


def cl100k() -> Tokenizer:
    return _byte_level(_split(CL100K))


def o200k() -> Tokenizer:
    return _byte_level(_split(O200K))


def deepseek() -> Tokenizer:
    return _byte_level(_split(*DEEPSEEK))


def behaviours() -> Tokenizer:
    """Every way in which a split treats what it finds."""
    parts = [
        pre_tokenizers.Split("the", "merged_with_next"),
        pre_tokenizers.Split(Regex(r"[,;]"), "merged_with_previous"),
        pre_tokenizers.Split(Regex(r"\d"), "contiguous"),
        pre_tokenizers.Split(Regex(r"[aeiou]{2,3}?"), "isolated", invert=True),
        pre_tokenizers.Split("#", "removed"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return _byte_level(pre_tokenizers.Sequence(parts))


def _sentencepiece(
    normalizer: normalizers.Normalizer | None,
    pre: pre_tokenizers.PreTokenizer | None,
    decoder: decoders.Decoder,
    *,
    fallback: bool = True,
) -> Tokenizer:
    taught = Tokenizer(models.BPE(unk_token="<unk>"))
    taught.normalizer = normalizer or normalizers.Sequence([])
    taught.pre_tokenizer = pre or pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    _trained(taught, ["▁"])
    learned = json.loads(taught.to_str())["model"]
    vocabulary = learned["vocab"]
    if fallback:
        for byte in range(256):
            vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(pair) for pair in learned["merges"]]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=fallback)
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre is not None:
        tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("[x y]", normalized=True), AddedToken("\n\n")])
    return _begins(tokenizer, "<s>")


def _word_decoder(*more: decoders.Decoder) -> decoders.Decoder:
    return decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *more]
    )


def llama2() -> Tokenizer:
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _sentencepiece(normalizer, None, _word_decoder(decoders.Strip(" ", 1, 0)))


def gemma() -> Tokenizer:
    return _sentencepiece(
        normalizers.Replace(" ", "▁"),
        pre_tokenizers.Split(" ", "merged_with_previous"),
        _word_decoder(),
    )


def metaspace() -> Tokenizer:
    return _sentencepiece(None, pre_tokenizers.Metaspace(), decoders.Metaspace())


def metaspace_first() -> Tokenizer:
    return _sentencepiece(
        None,
        pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")]),
    )


def unknown() -> Tokenizer:
    """What is no token, nor bytes of it, is one unknown token."""
    return _sentencepiece(None, pre_tokenizers.Metaspace(), decoders.Metaspace(), fallback=False)


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    function.__name__: function
    for function in (
        *(gpt2, gpt2_prefixed, digits, whole_digits, llama3, qwen2, cl100k, o200k, deepseek),
        *(behaviours, llama2, gemma, metaspace, metaspace_first, unknown),
    )
}
