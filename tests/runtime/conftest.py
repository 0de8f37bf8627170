"""Tiny artifacts for the runtime's tests: a language model and a module with known arithmetic."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from qcompiler.core.artifact import (
    CacheSpec,
    EntryFunction,
    Manifest,
    ModelFacts,
    TargetFacts,
    TensorSpec,
    write_artifact,
)
from qcompiler.runtime import LanguageModel, load
from qcompiler.runtime.machine import this_machine

HEADS, HEAD_DIM, CONTEXT = 2, 8, 150
WIDTH = HEADS * HEAD_DIM


def language_model_kernel(vocab: int) -> Any:
    """Write a token's embedding to the caches; score every token by a sum over all cached."""
    # Not at the top: most tests here do without the compiler.
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def kernel(
        ids_handle: T.handle,
        position: T.Buffer((1,), "int64"),
        rows_handle: T.handle,
        k_handle: T.handle,
        v_handle: T.handle,
        table: T.Buffer((vocab, WIDTH), "float32"),
        out_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        s = T.int64()
        r = T.int64()
        c = T.int64()
        ids = T.match_buffer(ids_handle, (T.int64(1), s), "int64")
        rows = T.match_buffer(rows_handle, (r,), "int64")
        k = T.match_buffer(k_handle, (1, HEADS, c, HEAD_DIM), "float32")
        v = T.match_buffer(v_handle, (1, HEADS, c, HEAD_DIM), "float32")
        out = T.match_buffer(out_handle, (1, r, vocab), "float32")
        for i in T.serial(s):
            for h in T.serial(HEADS):
                for d in T.serial(HEAD_DIM):
                    k[0, h, position[0] + i, d] = table[ids[0, i], h * HEAD_DIM + d]
                    v[0, h, position[0] + i, d] = table[ids[0, i], h * HEAD_DIM + d] * T.float32(
                        0.5
                    )
        for n in T.parallel(vocab):
            for i in T.serial(r):
                out[0, i, n] = T.float32(0)
                for j in T.serial(position[0] + rows[i] + T.int64(1)):
                    for h in T.serial(HEADS):
                        for d in T.serial(HEAD_DIM):
                            out[0, i, n] = (
                                out[0, i, n]
                                + (
                                    k[0, h, j, d] * T.cast((j * T.int64(7)) % T.int64(5), "float32")
                                    + v[0, h, j, d]
                                )
                                * table[(n * 5 + 3) % vocab, h * HEAD_DIM + d]
                            )

    return kernel


def expected_logits(table: np.ndarray, ids: list[int]) -> np.ndarray:
    """What the kernel computes, for a sequence from its beginning: [len(ids), vocab]."""
    weights = (np.arange(len(ids)) * 7 % 5 + 0.5)[:, None]
    head = table[(np.arange(len(table)) * 5 + 3) % len(table)].astype(np.float64)
    return np.cumsum(table[ids] * weights, 0) @ head.T


def build_language_model(path: Path, vocab: int) -> None:
    from tvm import relax, tirx

    builder = relax.BlockBuilder()
    kernel = builder.add_func(language_model_kernel(vocab), "kernel")
    for name in ("prefill", "decode"):
        s, r, c = (tirx.Var(n, "int64") for n in "src")
        one = name == "decode"
        ids = relax.Var("ids", relax.TensorType([1, 1 if one else s], "int64"))
        position = relax.Var("position", relax.TensorType([1], "int64"))
        rows = relax.Var("rows", relax.TensorType([r], "int64"))
        cache = relax.TensorType([1, HEADS, c, HEAD_DIM], "float32")
        kv = relax.Var("kv", relax.TupleType([cache, cache]))
        table = relax.TensorType([vocab, WIDTH], "float32")
        weights = relax.Var("weights", relax.TupleType([table]))
        arguments = [ids, position, kv, weights] if one else [ids, position, rows, kv, weights]
        with builder.function(name, arguments):
            with builder.dataflow():
                wanted = relax.const(np.zeros(1, np.int64), "int64") if one else rows
                inputs = [ids, position, wanted, kv[0], kv[1], weights[0]]
                out = relax.TensorType([1, 1 if one else r, vocab], "float32")
                result = builder.emit_output(relax.call_tir(kernel, inputs, out))
            builder.emit_func_output(result)
    compile_to(builder.finalize(), path)


def build_module(path: Path, *, one_output: bool = False) -> None:
    """forward(x [b, 4], k [b]) → (x + w, k + 1), or the first alone."""
    from tvm import relax, tirx

    builder = relax.BlockBuilder()
    b = tirx.Var("b", "int64")
    x = relax.Var("x", relax.TensorType([b, 4], "float32"))
    k = relax.Var("k", relax.TensorType([b], "int64"))
    weights = relax.Var("weights", relax.TupleType([relax.TensorType([4], "float32")]))
    with builder.function("forward", [x, k, weights]):
        with builder.dataflow():
            y = builder.emit(relax.op.add(x, weights[0]))
            z = builder.emit(relax.op.add(k, relax.const(np.int64(1), "int64")))
            result = builder.emit_output(y if one_output else relax.Tuple([y, z]))
        builder.emit_func_output(result)
    compile_to(builder.finalize(), path)


def compile_to(module: Any, path: Path) -> None:
    import tvm

    tvm.compile(module, target=tvm.target.Target({"kind": "llvm"})).export_library(str(path))


def tensor(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def target_facts() -> TargetFacts:
    return TargetFacts(name="here", arch=this_machine().arch, features=())


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A byte-level BPE with two special tokens and a few merges."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|begin|>", "<|end|>"],
        show_progress=False,
    )
    trained.train_from_iterator(["the cat sat on the mat and the cat sang to the man"] * 4, trainer)
    return trained


@pytest.fixture(scope="session")
def table(tokenizer: Tokenizer) -> np.ndarray:
    """The tiny language model's only weight, [vocab, width]."""
    size = (tokenizer.get_vocab_size(), WIDTH)
    return np.random.default_rng(7).normal(size=size).astype(np.float32)


@pytest.fixture(scope="session")
def write_lm(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, table: np.ndarray
) -> Callable[..., Path]:
    """Write a language model's artifact to a folder; keywords change the facts of the model."""
    library = tmp_path_factory.mktemp("lm") / "model.so"
    build_language_model(library, len(table))

    def write(
        folder: Path,
        *,
        target: TargetFacts | None = None,
        weights: np.ndarray = table,
        with_tokenizer: bool = True,
        **facts: Any,
    ) -> Path:
        cache = CacheSpec(heads=HEADS, head_dim=HEAD_DIM)
        model = ModelFacts(
            name="tiny",
            architecture="sum",
            source="test",
            vocab_size=len(table),
            max_context=CONTEXT,
            kv=(cache, cache),
        )
        entry = EntryFunction(
            inputs=(tensor("ids", "int64", 1, "s"), tensor("position", "int64", 1)),
            outputs=(tensor("logits", "float32", 1, "r", len(table)),),
        )
        manifest = Manifest(
            kind="causal-lm",
            compiler="0",
            model=dataclasses.replace(model, **facts),
            target=target or target_facts(),
            functions={"prefill": entry, "decode": entry},
            weights=(tensor("table", "float32", *weights.shape),),
        )
        files: dict[str, bytes | Path] = {"model.so": library, **runtime_files()}
        if with_tokenizer:
            files["tokenizer.json"] = tokenizer.to_str().encode()
        write_artifact(folder, manifest, files, [("table", weights)])
        return folder

    return write


def runtime_files() -> dict[str, bytes | Path]:
    (folder,) = importlib.util.find_spec("tvm").submodule_search_locations
    return {"lib/libtvm_runtime.so": Path(folder) / "lib" / "libtvm_runtime.so"}


@pytest.fixture(scope="session")
def lm_folder(tmp_path_factory: pytest.TempPathFactory, write_lm: Callable[..., Path]) -> Path:
    return write_lm(tmp_path_factory.mktemp("artifacts") / "tiny.qc")


@pytest.fixture(scope="session")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_module(tmp_path_factory.mktemp("module"), one_output=False)


@pytest.fixture(scope="session")
def one_output_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_module(tmp_path_factory.mktemp("module"), one_output=True)


def write_module(folder: Path, *, one_output: bool) -> Path:
    build_module(folder / "model.so", one_output=one_output)
    outputs = (tensor("y", "float32", "b", 4), tensor("z", "int64", "b"))
    manifest = Manifest(
        kind="module",
        compiler="0",
        model=ModelFacts(name="adder", architecture="add", source="test"),
        target=target_facts(),
        functions={
            "forward": EntryFunction(
                inputs=(tensor("x", "float32", "b", 4), tensor("k", "int64", "b")),
                outputs=outputs[:1] if one_output else outputs,
                bounds={"b": (1, 64)},
                rows={"k": 100},
            )
        },
        weights=(tensor("w", "float32", 4),),
    )
    weight = np.arange(4, dtype=np.float32)
    files: dict[str, bytes | Path] = {"model.so": folder / "model.so", **runtime_files()}
    write_artifact(folder / "adder.qc", manifest, files, [("w", weight)])
    return folder / "adder.qc"


@pytest.fixture(scope="session")
def expected(table: np.ndarray) -> Callable[[list[int]], np.ndarray]:
    """What the tiny language model should say: logits [len(ids), vocab] of a whole sequence."""
    return lambda ids: expected_logits(table, list(ids))


@pytest.fixture
def lm(lm_folder: Path) -> Iterator[LanguageModel]:
    with load(lm_folder) as model:
        assert isinstance(model, LanguageModel)
        yield model
