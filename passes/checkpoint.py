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
from qcompiler.core.calibration import Calibration
from qcompiler.core.formats import TensorFormat
from qcompiler.core.options import spec
from qcompiler.core.pass_base import Pass
from qcompiler.core.printer import print_program
from qcompiler.core.program import Program
from qcompiler.core.qtensor import QuantizedTensor

Codes = dict[str, QuantizedTensor]
"""Quantised entries by name."""

STATE = "state.json"


class Checkpoint:
    """A folder with the tensors of finished blocks, and the activations after one of them.

    A block is finished once `state.json` says so; it is written last, by renaming. The folder's
    name holds a hash of all that the result depends on: another model, text or option begins anew.

    `done` blocks are finished, and activations are those after the first `reached` of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done, self.reached = self._read_state()

    def _read_state(self) -> tuple[int, int]:
        """Return `done` and `reached`; nothing that is damaged counts."""
        try:
            state = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
            done, reached = int(state["done"]), int(state["reached"])
            blocks = all(self._block(i).is_file() for i in range(done))
            if blocks and (not reached or self._after(reached).is_dir()):
                return done, reached
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return 0, 0

    def read(self, index: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Read a finished block's tensors, and what was recorded of it."""
        with safetensors.safe_open(self._block(index), "pt") as file:
            record: dict[str, Any] = json.loads(file.metadata()["record"])
            return {key: file.get_tensor(key) for key in sorted(file.keys())}, record

    def activations(self, chain: str, budget: int | None) -> Activations:
        """Open the values after the first `reached` blocks."""
        return Activations.load(self._after(self.reached) / chain, budget=budget)

    def save(
        self,
        tensors: Mapping[str, torch.Tensor],
        record: Mapping[str, Any],
        chains: Mapping[str, Activations] | None,
    ) -> None:
        """Keep the next block: tensors, a record, and if given the activations after it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = {key: tensor.contiguous() for key, tensor in tensors.items()}
        partial = self.folder / "partial"
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
        partial.rename(self.folder / STATE)
        self.done, self.reached = done, reached
        for folder in self.folder.glob("after-*"):
            if folder != self._after(reached):
                shutil.rmtree(folder, ignore_errors=True)

    def _block(self, index: int) -> Path:
        return self.folder / f"block-{index:04}.safetensors"

    def _after(self, done: int) -> Path:
        return self.folder / f"after-{done:04}"


def pack_codes(codes: Codes) -> dict[str, torch.Tensor]:
    """Return the tensors that codes by entry are kept as."""
    tensors: dict[str, torch.Tensor] = {}
    for name, entry in codes.items():
        tensors |= {f"{name}|codes": entry.codes, f"{name}|scale": entry.scale}
        if entry.zero_point is not None:
            tensors[f"{name}|zero_point"] = entry.zero_point
    return tensors


def unpack_codes(tensors: Mapping[str, torch.Tensor], formats: Mapping[str, TensorFormat]) -> Codes:
    """Return the codes by entry that `pack_codes` made tensors of."""
    names = sorted({key.rpartition("|")[0] for key in tensors})
    return {
        name: QuantizedTensor(
            tensors[f"{name}|codes"],
            tensors[f"{name}|scale"],
            tensors.get(f"{name}|zero_point"),
            formats[name],
        )
        for name in names
    }


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
        print_program(program),
    ]
    for part in parts:
        digest.update(part.encode() + b"\0")
    _add_weights(digest, program)
    return Checkpoint(work / f"{step.name}-{digest.hexdigest()[:16]}")


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
