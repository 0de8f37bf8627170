"""Weights in safetensors files: one file, or shards named by an index."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from qcompiler.core.errors import CaptureError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsSource:
    """The tensors of some safetensors files.

    Headers are read when it is made; a tensor's bytes when `read` asks for them. A file is open
    only while one of its tensors is read, so that a model larger than memory can pass through.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, str] = {}
        for file in files:
            self._add(file)

    @classmethod
    def from_folder(cls, folder: Path) -> SafetensorsSource:
        """Open the weights of a Hugging Face folder.

        Raises:
            CaptureError: it has none, only pickled ones, not all shards, or a damaged file.
        """
        if (folder / INDEX).is_file():
            return cls(_shards(folder))
        if (folder / SINGLE).is_file():
            return cls([folder / SINGLE])
        found = sorted(folder.glob("*.safetensors"))
        if len(found) == 1:
            return cls(found)
        if found:
            raise CaptureError(
                f"{folder} holds {len(found)} safetensors files but no {INDEX} that says what is "
                "in which; download that file too"
            )
        if pickled := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
            raise CaptureError(
                f"{folder} holds its weights only as a pickle ({pickled[0].name}), which can run "
                "code when it is opened; load it where you trust it and write safetensors with "
                "save_pretrained"
            )
        raise CaptureError(f"{folder} holds no weights: there is no {SINGLE} and no {INDEX}")

    def names(self) -> Iterable[str]:
        return self._files

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return DTYPES[self._types[name]]

    def file(self, name: str) -> Path:
        """Return the file a tensor lies in."""
        return self._files[name]

    def read(self, name: str) -> torch.Tensor:
        file = self._files[name]
        try:
            with safe_open(file, framework="pt") as opened:
                tensor: torch.Tensor = opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CaptureError(f"'{name}' cannot be read from {file}: {_plain(error)}") from error
        return tensor

    def describe(self) -> str:
        """Say what most numbers are stored as, such as "safetensors BF16"."""
        count: Counter[str] = Counter()
        for name, kind in self._types.items():
            count[kind] += prod(self._shapes[name])
        return f"safetensors {count.most_common(1)[0][0]}" if count else "safetensors"

    def _add(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in sorted(opened.keys()):
                    view = opened.get_slice(name)
                    self._files[name] = file
                    self._shapes[name] = tuple(view.get_shape())
                    self._types[name] = _known_type(file, name, view.get_dtype())
        except (OSError, SafetensorError) as error:
            raise CaptureError(
                f"{file} is damaged or was not downloaded in full ({_plain(error)}); "
                "download it again"
            ) from error


def _known_type(file: Path, name: str, kind: str) -> str:
    if kind not in DTYPES:
        raise CaptureError(f"'{name}' in {file} is stored as {kind}, which cannot be read")
    return kind


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX
    try:
        content: Any = json.loads(index.read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CaptureError(f"{index} is damaged; download it again") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CaptureError(
            f"{folder} lacks {len(missing)} of {len(names)} weight files that {INDEX} names, "
            f"the first of them {missing[0]}; download the rest"
        )
    return [folder / name for name in names]


def _plain(error: Exception) -> str:
    text = str(error).strip().rstrip(".")
    return text.removeprefix("Error while deserializing header: ") or type(error).__name__
