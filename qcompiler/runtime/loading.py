"""From a folder to something that runs."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tokenizers import Tokenizer

from qcompiler.core.artifact import (
    WEIGHTS,
    Manifest,
    file_record,
    read_manifest,
    read_weights,
    verify_files,
)
from qcompiler.core.errors import ArtifactError
from qcompiler.runtime.compiled_module import CompiledModule
from qcompiler.runtime.executable import LIBRARY, RUNTIME, Executable
from qcompiler.runtime.language_model import LanguageModel
from qcompiler.runtime.machine import check_machine, this_machine
from qcompiler.runtime.workers import Workers

TOKENIZER = "tokenizer.json"


def load(
    path: str | os.PathLike[str], *, threads: int | None = None
) -> LanguageModel | CompiledModule:
    """Load an artifact; `threads` is one for each core this process may use unless given.

    The file hashes are checked, and that this machine has the instruction sets the code needs.
    Raises ArtifactError, in a sentence that says what to do, for anything that is wrong with the
    artifact, UsageError for a number of threads that cannot be.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    check_machine(manifest.target, this_machine())
    workers = Workers(threads)
    with ThreadPoolExecutor(1) as reader:
        # Reading and hashing the weights takes longest, and goes on beside the rest.
        record = file_record(folder, manifest, WEIGHTS)
        weights = reader.submit(read_weights, folder / WEIGHTS, record)
        others = {LIBRARY, RUNTIME, *manifest.files} - {WEIGHTS}
        verify_files(folder, manifest, only=others)
        tokenizer = _read_tokenizer(folder, manifest)
        executable = Executable(folder, manifest, weights.result(), workers)
    if manifest.kind == "causal-lm":
        return LanguageModel(manifest, executable, tokenizer)
    return CompiledModule(manifest, executable)


def _read_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer | None:
    """Read the tokenizer if the artifact has one."""
    if TOKENIZER not in manifest.files:
        return None
    try:
        tokenizer = Tokenizer.from_file(os.fspath(folder / TOKENIZER))
    except Exception as error:  # the library raises nothing more precise
        raise ArtifactError(
            f"{folder / TOKENIZER} cannot be read by the installed version of tokenizers "
            f"({error}); upgrade it, or compile the model again"
        ) from None
    # Limits of a training set-up that some tokenizers bring along.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
