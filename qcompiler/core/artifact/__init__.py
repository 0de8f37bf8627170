"""An artifact: its manifest, its weights file and its folder on disk.

Imports numpy and the standard library only, since everything that runs an artifact starts here.
"""

from __future__ import annotations

from qcompiler.core.artifact.costs import FunctionCosts, KernelCost, LimitFacts
from qcompiler.core.artifact.folder import (
    MANIFEST,
    UNLISTED,
    WEIGHTS,
    check_destination,
    copy_artifact,
    file_record,
    read_manifest,
    verify_files,
    write_artifact,
)
from qcompiler.core.artifact.manifest import (
    SCHEMA,
    CacheSpec,
    EntryFunction,
    FileRecord,
    KernelChoice,
    Manifest,
    ModelFacts,
    Plain,
    TargetFacts,
    TensorSpec,
    from_json,
    to_json,
)
from qcompiler.core.artifact.step import LINE_BYTES, StepFacts
from qcompiler.core.artifact.weights import (
    ALIGNMENT,
    encode_weights,
    read_weights,
    spec_bytes,
    weight_offsets,
)

__all__ = [
    "ALIGNMENT",
    "LINE_BYTES",
    "MANIFEST",
    "SCHEMA",
    "UNLISTED",
    "WEIGHTS",
    "CacheSpec",
    "EntryFunction",
    "FileRecord",
    "FunctionCosts",
    "KernelChoice",
    "KernelCost",
    "LimitFacts",
    "Manifest",
    "ModelFacts",
    "Plain",
    "StepFacts",
    "TargetFacts",
    "TensorSpec",
    "check_destination",
    "copy_artifact",
    "encode_weights",
    "file_record",
    "from_json",
    "read_manifest",
    "read_weights",
    "spec_bytes",
    "to_json",
    "verify_files",
    "weight_offsets",
    "write_artifact",
]
