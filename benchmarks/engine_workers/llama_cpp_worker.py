"""Quantise a GGUF file with llama.cpp, or time it through its C interface. See clock.py."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp as library

from clock import StepEngine, main

FILE_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 7}
"""As `enum llama_ftype` numbers them."""

BATCH = 256
"""Tokens of a prompt that are read at once. Prompts are a few per cent faster with it than with the
512 that are the default; single tokens do not mind."""

FLASH_ATTENTION_OFF = 0
"""Left to itself, llama.cpp turns flash attention on. On a processor with AVX-512 that reads
prompts a tenth faster, but halves the speed of decoding or worse; issue 27086 of llama.cpp tells of
the like on other processors."""

_QUIET = library.llama_log_callback(lambda *_: None)


class Model(StepEngine):
    """A model in a context of its own. What is not set here is as by default."""

    def __init__(self, variant: str, path: Path, threads: int, room: int) -> None:
        library.llama_log_set(_QUIET, ctypes.c_void_p(0))
        library.llama_backend_init()
        model = library.llama_model_load_from_file(
            str(path).encode(), library.llama_model_default_params()
        )
        settings = library.llama_context_default_params()
        settings.n_ctx = room
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_threads = settings.n_threads_batch = threads
        settings.flash_attn_type = FLASH_ATTENTION_OFF
        self.context = library.llama_init_from_model(model, settings)
        if not model or not self.context:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))

    def prefill(self, prompt: list[int]) -> int:
        library.llama_memory_clear(library.llama_get_memory(self.context), True)
        for start in range(0, len(prompt), BATCH):
            self.read(prompt[start : start + BATCH])
        return self.likeliest()

    def decode(self, token: int) -> int:
        self.read([token])
        return self.likeliest()

    def read(self, tokens: list[int]) -> None:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        batch = library.llama_batch_get_one(array, len(tokens))
        if library.llama_decode(self.context, batch):
            raise SystemExit(f"llama.cpp cannot read {len(tokens)} tokens")

    def likeliest(self) -> int:
        logits = library.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocabulary,)).argmax())


def prepare(variant: str, source: str, target: Path) -> None:
    library.llama_log_set(_QUIET, ctypes.c_void_p(0))
    library.llama_backend_init()
    options = library.llama_model_quantize_default_params()
    options.ftype = FILE_TYPES[variant]
    options.allow_requantize = True
    if library.llama_model_quantize(source.encode(), str(target).encode(), options):
        raise SystemExit(f"llama.cpp cannot quantise {source} to {variant}")


if __name__ == "__main__":
    main(prepare, Model)
