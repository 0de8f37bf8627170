"""Keep long work block by block, so that it goes on where it was stopped, with the same result."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

import qcompiler
from passes.activations import Activations
from passes.planned import planned_weights
from qcompiler.core.calibration import Calibration
from qcompiler.core.formats import TensorFormat
from qcompiler.core.options import spec
from qcompiler.core.pass_base import Pass
from qcompiler.core.program import Program
from qcompiler.core.qtensor import QuantizedTensor

Codes = dict[str, QuantizedTensor]
"""Quantised entries by name."""

STATE = "state.json"


class Checkpoint:
    """A folder with the codes of finished blocks, and the activations after one of them.

    A block is finished once `state.json` says so; it is written last, by renaming. The folder's
    name holds a hash of all that the result depends on: another model, text or option begins anew.

    `done` blocks are finished, and activations are those after the first `reached` of them.
    """

    def __init__(self, folder: Path, formats: Mapping[str, TensorFormat]) -> None:
        self._folder = folder
        self._formats = formats
        self.done, self.reached = self._read_state()

    def _read_state(self) -> tuple[int, int]:
        """Return `done` and `reached`; nothing that is damaged counts."""
        try:
            state = json.loads((self._folder / STATE).read_text(encoding="utf-8"))
            done, reached = int(state["done"]), int(state["reached"])
            blocks = all(self._block(i).is_file() for i in range(done))
            if blocks and (not reached or self._after(reached).is_dir()):
                return done, reached
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return 0, 0

    def codes(self, index: int) -> tuple[Codes, dict[str, Any]]:
        """Read a finished block's codes, and what was recorded of it."""
        found: Codes = {}
        with safetensors.safe_open(self._block(index), "pt") as file:
            record: dict[str, Any] = json.loads(file.metadata()["record"])
            names = {key.rpartition("|")[0] for key in file.keys()}  # noqa: SIM118
            for name in sorted(names):
                form = self._formats[name]
                zero = None if form.symmetric else file.get_tensor(f"{name}|zero_point")
                codes, scale = file.get_tensor(f"{name}|codes"), file.get_tensor(f"{name}|scale")
                found[name] = QuantizedTensor(codes, scale, zero, form)
        return found, record

    def activations(self, chain: str, budget: int | None) -> Activations:
        """Open the values after the first `reached` blocks."""
        return Activations.load(self._after(self.reached) / chain, budget=budget)

    def save(
        self, codes: Codes, record: Mapping[str, Any], chains: Mapping[str, Activations] | None
    ) -> None:
        """Keep the next block: codes, what was recorded, and if given the activations after it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, torch.Tensor] = {}
        for name, entry in codes.items():
            tensors |= {f"{name}|codes": entry.codes, f"{name}|scale": entry.scale}
            if entry.zero_point is not None:
                tensors[f"{name}|zero_point"] = entry.zero_point
        data = {key: tensor.contiguous() for key, tensor in tensors.items()}
        partial = self._folder / "partial"
        partial.write_bytes(
            safetensors.torch.save(data, metadata={"record": json.dumps(dict(record))})
        )
        partial.rename(self._block(self.done))
        done, reached = self.done + 1, self.reached
        if chains is not None:
            reached = done
            after = self._after(reached)
            shutil.rmtree(after, ignore_errors=True)
            after.mkdir()
            for chain, activations in chains.items():
                activations.save(after / chain)
        partial.write_text(json.dumps({"done": done, "reached": reached}), encoding="utf-8")
        partial.rename(self._folder / STATE)
        self.done, self.reached = done, reached
        for folder in self._folder.glob("after-*"):
            if folder != self._after(reached):
                shutil.rmtree(folder, ignore_errors=True)

    def _block(self, index: int) -> Path:
        return self._folder / f"block-{index:04}.safetensors"

    def _after(self, done: int) -> Path:
        return self._folder / f"after-{done:04}"


def open_checkpoint(
    work: Path, step: Pass, program: Program, calibration: Calibration
) -> Checkpoint:
    """Open the checkpoint that a pass of these options on this program and text would have."""
    digest = hashlib.sha256()
    parts = [
        qcompiler.__version__,
        torch.__version__,
        # Sums of floats are split among threads: another number of them may round otherwise.
        str(torch.get_num_threads()),
        json.dumps(spec(step), sort_keys=True, default=str),
        json.dumps({name: str(scheme) for name, scheme in program.plan.items()}, sort_keys=True),
        calibration.digest,
    ]
    for part in parts:
        digest.update(part.encode() + b"\0")
    _add_weights(digest, program)
    formats = {entry: weight.scheme.weight for entry, weight in planned_weights(program).items()}
    return Checkpoint(work / f"{step.name}-{digest.hexdigest()[:16]}", formats)


def _add_weights(digest: Any, program: Program) -> None:
    for name in program.weights:
        weight = program.weights.get(name)
        digest.update(name.encode())
        for tensor in _tensors(weight):
            digest.update(tensor.contiguous().numpy().tobytes())


def _tensors(weight: torch.Tensor | QuantizedTensor) -> Iterable[torch.Tensor]:
    if isinstance(weight, torch.Tensor):
        return [weight]
    return [t for t in (weight.codes, weight.scale, weight.zero_point) if t is not None]
