"""Put an artifact together from a lowered program."""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer

import qcompiler
from codegen.build import Compiled, build, runtime_libraries
from codegen.lower import Lowered
from qcompiler.core import ops
from qcompiler.core.artifact import (
    CacheSpec,
    EntryFunction,
    KernelChoice,
    Manifest,
    ModelFacts,
    TargetFacts,
    TensorSpec,
    write_artifact,
)
from qcompiler.core.errors import UsageError
from qcompiler.core.kv_format import pair, row_of
from qcompiler.core.program import ModelInfo, Program
from qcompiler.core.target import Target
from qcompiler.report.content import PAGE, REPORT, TIMES, encode, parse
from qcompiler.report.page import render

SCRATCH_BYTES = 32 << 20
"""Space for object files and the library they are linked to; those of large models take a tenth."""


def check_scratch() -> None:
    """Make sure that there is room for temporary files: where LLVM lacks it, it ends the process.

    Raises:
        UsageError: there is none.
    """
    try:
        place = tempfile.gettempdir()
    except FileNotFoundError:
        raise UsageError(
            "no folder for temporary files can be written to; name one in TMPDIR"
        ) from None
    free = shutil.disk_usage(place).free
    if free < SCRATCH_BYTES:
        raise UsageError(
            f"{place} has {free / 1e6:.1f} MB left for temporary files, and compiling may take "
            f"{SCRATCH_BYTES / 1e6:.0f} MB; free some space, or name another folder in TMPDIR"
        )


def assemble(
    program: Program,
    lowered: Lowered,
    *,
    folder: Path,
    target: Target,
    pipeline: Sequence[Any],
    report: dict[str, object],
    times: Callable[[], dict[str, object]],
) -> Manifest:
    """Compile a lowered program and write its artifact to `folder`; return the manifest.

    `report` is what the compiler has to say, the same each time, and `times` what it read from a
    clock, asked for when all but these are written.
    """
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as scratch:
        library = Path(scratch) / "model.so"
        compiled = build(lowered.module, target, library, lowered.operators)
        if compiled.notes:
            notes = cast(dict[str, list[str]], report["notes"])
            report = report | {"notes": notes | {"build": list(compiled.notes)}}
        files: dict[str, bytes | Path] = {
            "model.so": library,
            **{f"lib/{path.name}": path for path in runtime_libraries(target)},
            REPORT: encode(report),
        }
        if program.info.tokenizer_json is not None:
            files["tokenizer.json"] = program.info.tokenizer_json.encode()
        manifest = _manifest(program, lowered, compiled, target, pipeline)

        def unlisted(final: Manifest) -> dict[str, bytes]:
            now = times()
            return {TIMES: encode(now), PAGE: render(final, parse(report, now)).encode()}

        return write_artifact(folder, manifest, files, lowered.weights.arrays(), unlisted=unlisted)


def _manifest(
    program: Program,
    lowered: Lowered,
    compiled: Compiled,
    target: Target,
    pipeline: Sequence[Any],
) -> Manifest:
    info = program.info
    return Manifest(
        kind=info.kind,
        compiler=qcompiler.__version__,
        model=ModelFacts(
            name=info.name,
            architecture=info.architecture,
            source=info.source,
            vocab_size=info.vocab_size or 0,
            max_context=info.max_context or 0,
            kv=tuple(
                CacheSpec(
                    heads=kv.heads,
                    head_dim=kv.head_dim,
                    dtype=row_of(form, kv.head_dim)[1],
                    format=form,
                )
                for kv in info.kv
                for form in pair(kv.format)
            ),
            end_tokens=info.end_tokens,
            begin_token=info.begin_token,
            chat_template=info.chat_template,
            special_tokens=_special_tokens(info),
        ),
        target=TargetFacts(
            name=target.name,
            arch=target.arch,
            features=tuple(sorted(target.features)),
            compute_capability=0 if target.gpu is None else target.gpu.level,
        ),
        pipeline=tuple(pipeline),
        plan={name: str(scheme) for name, scheme in program.plan.items()},
        kernels={
            name: KernelChoice(kernel=kernel, reason=reason)
            for name, (kernel, reason) in lowered.kernels.items()
        },
        functions={
            name: replace(
                _entry(program, names, fixed),
                step=compiled.steps.get(name),
                costs=compiled.costs.get(name),
            )
            for name, (names, fixed) in lowered.functions.items()
        },
        weights=tuple(
            TensorSpec(name=entry.name, dtype=entry.dtype, shape=entry.shape)
            for entry in lowered.weights.entries
        ),
        limits=compiled.limits,
        requires={
            name: importlib.metadata.version(name) for name in ("apache-tvm", "apache-tvm-ffi")
        },
    )


def _special_tokens(info: ModelInfo) -> dict[str, str]:
    """Return the tokens that chat templates call by name, as texts."""
    if info.tokenizer_json is None:
        return {}
    tokenizer = Tokenizer.from_str(info.tokenizer_json)
    named = {"bos_token": info.begin_token, "eos_token": next(iter(info.end_tokens), None)}
    texts = {name: tokenizer.id_to_token(i) for name, i in named.items() if i is not None}
    return {name: text for name, text in texts.items() if text is not None}


def _entry(program: Program, names: Sequence[str], fixed: dict[str, int]) -> EntryFunction:
    """Describe an entry function's tensors; sizes that vary are named in their order."""
    sizes = _Sizes(fixed)

    def spec(name: str, val: torch.Tensor) -> TensorSpec:
        dtype = str(val.dtype).removeprefix("torch.")
        return TensorSpec(name=name, dtype=dtype, shape=tuple(map(sizes.describe, val.shape)))

    inputs = {str(n.target): n.meta["val"] for n in program.placeholders()}
    (output,) = [n for n in program.graph.nodes if n.op == "output"]
    results = output.args[0] if isinstance(output.args[0], tuple | list) else [output.args[0]]
    return EntryFunction(
        inputs=tuple(spec(name, inputs[name]) for name in names),
        outputs=tuple(spec(f"output_{i}", node.meta["val"]) for i, node in enumerate(results)),
        bounds=sizes.bounds,
        rows={name: count for name, count in _looked_up(program) if name in names},
    )


class _Sizes:
    """Names for the sizes that vary, and the range of each; some have a value in this function."""

    def __init__(self, fixed: dict[str, int]) -> None:
        self.bounds: dict[str, tuple[int, int | None]] = {}
        self._fixed = fixed
        self._names: dict[str, str] = {}

    def describe(self, size: int | torch.SymInt) -> int | str:
        if isinstance(size, int):
            return size
        text = str(size)
        if text in self._fixed:
            return self._fixed[text]
        if text not in self._names:
            self._names[text] = f"s{len(self._names)}"
            self.bounds[self._names[text]] = _bounds(size)
        return self._names[text]


def _bounds(size: torch.SymInt) -> tuple[int, int | None]:
    found = size.node.shape_env.bound_sympy(size.node.expr)
    # Of a size that varies torch assumes that it is 2 or more; kernels do not care.
    low = int(found.lower) if found.lower > 2 else 1
    return low, int(found.upper) if found.upper.is_Integer else None


def _looked_up(program: Program) -> Iterator[tuple[str, int]]:
    """Yield the inputs that name rows of a table, and how many rows it has."""
    for node in program.graph.nodes:
        if node.target in {ops.embedding, ops.quantized_embedding}:
            source, table = node.args
            if source.op == "placeholder" and table.op == "get_attr":
                yield str(source.target), program.weights.shape(str(table.target))[0]
