"""One engine in one process: load a model, time prefill and decode, print one JSON object.

    python benchmarks/workers.py torch-fp32 smollm2-135m --prompt-tokens 512 --generate-tokens 128

Run by side_by_side.py, a process per engine and round, so that no engine's threads, memory or
caches disturb another's.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Timed = tuple[float, float]
"""Seconds of a prefill and of the decode after it."""


def qcompiler_engine(model: str, prompt: list[int], count: int, threads: int) -> Iterator[Timed]:
    """An artifact of ours."""
    import qcompiler

    session = qcompiler.load(model, threads=threads).new_session()
    while True:
        session.reset()
        start = time.perf_counter()
        logits = session.prefill(prompt)
        middle = time.perf_counter()
        for _ in range(count):
            logits = session.decode(int(logits.argmax()))
        yield middle - start, time.perf_counter() - middle


def torch_engine(
    model: str, prompt: list[int], count: int, threads: int, dtype: str
) -> Iterator[Timed]:
    """The model in eager torch, as transformers runs it, with a cache that grows."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    path = Path(model)
    module = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=getattr(torch, dtype)
    ).eval()
    with torch.inference_mode():
        while True:
            start = time.perf_counter()
            out = module(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
            middle = time.perf_counter()
            for _ in range(count):
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                out = module(token, past_key_values=out.past_key_values, use_cache=True)
            yield middle - start, time.perf_counter() - middle


def llama_cpp_engine(
    model: str, prompt: list[int], count: int, threads: int, kind: str
) -> Iterator[Timed]:
    """llama.cpp through its C interface, the model re-quantised to `kind`."""
    import llama_cpp
    import numpy as np

    library = llama_cpp.llama_cpp
    source = Path(model)
    path = Path("build") / f"{source.stem}.{kind}.gguf"
    library.llama_backend_init()
    quiet = library.llama_log_callback(lambda *_: None)
    library.llama_log_set(quiet, ctypes.c_void_p(0))
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        options = library.llama_model_quantize_default_params()
        options.ftype = {"q4_0": 2, "q8_0": 7}[kind]
        options.allow_requantize = True
        library.llama_model_quantize(str(source).encode(), str(path).encode(), options)
    loaded = library.llama_model_load_from_file(
        str(path).encode(), library.llama_model_default_params()
    )
    settings = library.llama_context_default_params()
    settings.n_ctx = len(prompt) + count + 1
    settings.n_batch = settings.n_ubatch = 512
    settings.n_threads = settings.n_threads_batch = threads
    context = library.llama_init_from_model(loaded, settings)
    vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(loaded))

    def feed(tokens: list[int]) -> int:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        assert library.llama_decode(context, library.llama_batch_get_one(array, len(tokens))) == 0
        logits = library.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(vocabulary,)).argmax())

    while True:
        library.llama_memory_clear(library.llama_get_memory(context), True)
        start = time.perf_counter()
        token = feed(prompt)
        middle = time.perf_counter()
        for _ in range(count):
            token = feed([token])
        yield middle - start, time.perf_counter() - middle


ENGINES: dict[str, Callable[[str, list[int], int, int], Iterator[Timed]]] = {
    "qcompiler": qcompiler_engine,
    "torch-fp32": lambda *a: torch_engine(*a, dtype="float32"),
    "torch-bf16": lambda *a: torch_engine(*a, dtype="bfloat16"),
    "llama.cpp-q4_0": lambda *a: llama_cpp_engine(*a, kind="q4_0"),
    "llama.cpp-q8_0": lambda *a: llama_cpp_engine(*a, kind="q8_0"),
}


def measure(runs: Iterator[Timed], prompt: int, count: int, repeats: int) -> dict[str, Any]:
    """Run once to warm up and `repeats` times for the record."""
    next(runs)
    timed = [next(runs) for _ in range(repeats)]
    prefill = [prompt / p for p, _ in timed]
    decode = [count / d for _, d in timed]
    return {
        "prefill_tokens_per_s": {"best": max(prefill), "median": statistics.median(prefill)},
        "decode_tokens_per_s": {"best": max(decode), "median": statistics.median(decode)},
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--generate-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    # Any tokens do: no engine's time depends on which they are.
    prompt = [100 + i * 37 % 20000 for i in range(options.prompt_tokens)]
    runs = ENGINES[options.engine](options.model, prompt, options.generate_tokens, options.threads)
    result = measure(runs, options.prompt_tokens, options.generate_tokens, options.repeats)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
