"""An artifact on disk: a folder that is there whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from qcompiler.core.artifact.manifest import FileRecord, Manifest, from_json, to_json
from qcompiler.core.artifact.weights import encode_weights, spec_bytes
from qcompiler.core.errors import ArtifactError

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
UNLISTED = frozenset({"report.html", "times.json"})
"""Files an artifact may hold that its manifest does not list: they differ from run to run."""
_CHUNK = 1 << 20


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an artifact.

    Raises ArtifactError, in a sentence that says what to do, when the folder or the manifest is
    missing, damaged or written by a newer version.
    """
    if not folder.exists():
        raise ArtifactError(f"there is no {folder}; give the folder that 'qcompiler compile' wrote")
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; give the folder that 'qcompiler compile' wrote")
    try:
        text = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} is no artifact: it has no {MANIFEST}; "
            "give the folder that 'qcompiler compile' wrote"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{folder / MANIFEST} cannot be read: {error.strerror}") from None
    return from_json(text, str(folder / MANIFEST))


def file_record(folder: Path, manifest: Manifest, name: str) -> FileRecord:
    """Return what the manifest says of a file; ArtifactError when it does not list it."""
    if name not in manifest.files:
        raise ArtifactError(
            f"{folder / MANIFEST} is damaged: it does not list {name}; "
            "copy the artifact again or compile the model again"
        )
    return manifest.files[name]


def verify_files(folder: Path, manifest: Manifest, *, only: Collection[str] | None = None) -> None:
    """Check that every file, or those in `only`, is what the manifest says.

    Raises ArtifactError for the first that is missing, of another size or of another content.
    """
    again = "copy the artifact again or compile the model again"
    for name in sorted(manifest.files if only is None else only):
        path = folder / name
        record = file_record(folder, manifest, name)
        try:
            size = path.stat().st_size
            if size != record.bytes:
                raise ArtifactError(
                    f"{path} is damaged: it has {size} bytes in place of {record.bytes}; {again}"
                )
            # The weights are hashed while they are read; `only` leaves them out then.
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise ArtifactError(f"{path} is missing; {again}") from None
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
        if digest != record.sha256:
            raise ArtifactError(
                f"{path} is damaged: its content does not match its sha256; {again}"
            )


def check_destination(folder: Path) -> None:
    """Make sure that an artifact can be written to `folder`: ask before the long work.

    Raises ArtifactError when its parent is missing or read-only, or when something other than an
    artifact is there, or an artifact that somebody has put files of their own into.
    """
    folder = Path(os.path.realpath(folder))
    parent = folder.parent
    if not parent.is_dir():
        raise ArtifactError(f"the folder {parent} does not exist; make it, or choose another place")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ArtifactError(f"nothing can be written to {parent}; choose another place")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; choose another place for the artifact")
    if not (folder / MANIFEST).is_file():
        if not any(folder.iterdir()):
            return
        raise ArtifactError(
            f"{folder} holds something other than an artifact, which is not overwritten; "
            "choose another place, or delete it first"
        )
    try:
        known = read_manifest(folder).files
    except ArtifactError as error:
        raise ArtifactError(
            f"{folder} is not overwritten, since it cannot be told for an artifact: {error}"
        ) from None
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in {MANIFEST, *UNLISTED, *known} and not path.is_dir():
            raise ArtifactError(
                f"{folder} is not overwritten, since {name} in it is not part of the artifact; "
                "move that file, or choose another place"
            )


def write_artifact(
    folder: Path,
    manifest: Manifest,
    files: Mapping[str, bytes | Path],
    weights: Iterable[tuple[str, np.ndarray]],
    *,
    unlisted: Callable[[Manifest], Mapping[str, bytes]] | None = None,
) -> Manifest:
    """Write an artifact, whole or not at all, and return its manifest with sizes and hashes.

    `files` maps names to contents, or to files that are copied; `weights` come in the order of
    `manifest.weights`, one in memory at a time; `unlisted` gives, for the manifest as it is
    written, files of the names in `UNLISTED`. All is written beside `folder`, flushed to disk and
    renamed; an artifact that is there already is replaced at the very end, and untouched by any
    failure before. Equal arguments give equal bytes.

    Raises ArtifactError as `check_destination` does, and when the disk is full.
    """
    check_destination(folder)
    place = Path(os.path.realpath(folder))
    sizes = manifest.sizes | {"weight_bytes": sum(map(spec_bytes, manifest.weights))}
    # The name is random, so that two compilers do not meet in one folder.
    partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir()
        records = {
            name: _write(partial / _checked_name(name), _chunks(content))
            for name, content in files.items()
        }
        records[WEIGHTS] = _write(partial / WEIGHTS, encode_weights(manifest.weights, weights))
        manifest = dataclasses.replace(manifest, sizes=sizes, files=records)
        _write(partial / MANIFEST, [to_json(manifest).encode()])
        for name, content in (unlisted(manifest) if unlisted is not None else {}).items():
            if name not in UNLISTED:
                raise ValueError(f"{name} is no file that the manifest may leave out")
            _write(partial / name, [content])
        for subfolder in {(partial / name).parent for name in records}:
            _sync_folder(subfolder)
        _replace(partial, place)
    except OSError as error:
        raise ArtifactError(_explain(error, folder)) from None
    finally:
        # Also after Ctrl-C, which goes on to the caller.
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def copy_artifact(source: Path, folder: Path) -> None:
    """Copy an artifact, whole or not at all, over another one if there is one.

    Raises ArtifactError as `write_artifact` does.
    """
    check_destination(folder)
    place = Path(os.path.realpath(folder))
    partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
    try:
        shutil.copytree(source, partial)
        _replace(partial, place)
    except (OSError, shutil.Error) as error:
        raise ArtifactError(_explain(error, folder)) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(new: Path, place: Path) -> None:
    """Rename `new` to `place`; what was there is put back if that fails, deleted if not."""
    if not place.exists() or not any(place.iterdir()):
        new.rename(place)
        _sync_folder(place.parent)
        return
    aside = new.with_suffix(".old")
    try:
        place.rename(aside)
        new.rename(place)
    except BaseException:
        if aside.exists() and not place.exists():
            aside.rename(place)
        raise
    _sync_folder(place.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _checked_name(name: str) -> PurePosixPath:
    """Return a file name that stays inside the artifact and is not the compiler's own."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or name in {MANIFEST, WEIGHTS, *UNLISTED}:
        raise ValueError(f"{name} is no name for a file of an artifact")
    return path


def _chunks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> FileRecord:
    """Write a file, flush it to disk and say what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(sha256=digest.hexdigest(), bytes=size)


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: OSError, folder: Path) -> str:
    """Say why an artifact could not be written."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return (
            f"{folder} was not written: the disk is full; free some space, or choose another place"
        )
    cause = error.strerror or str(error)
    return f"{folder} was not written: {cause[:1].lower()}{cause[1:]}; choose another place"
