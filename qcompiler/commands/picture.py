"""Files that commands draw pictures into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qcompiler.core.errors import UnsupportedError, UsageError

_PICTURES = (".svg", ".png")


def check_picture(option: str, picture: Path) -> None:
    """Refuse a picture that could not be drawn in the end; `option` asked for it."""
    if picture.suffix.lower() not in _PICTURES:
        raise UsageError(f"{option} {picture}: end the name with .svg or .png")
    if not picture.absolute().parent.is_dir():
        raise UsageError(f"{option} {picture}: there is no folder {picture.parent}")
    if picture.suffix.lower() == ".png":
        _rasterizer()


def write_picture(drawing: str, picture: Path) -> None:
    """Write SVG text to a file, as what its name says."""
    if picture.suffix.lower() == ".svg":
        picture.write_text(drawing + "\n", encoding="utf-8")
    else:
        data = _rasterizer()(svg_string=drawing, background="#ffffff", zoom=2)
        picture.write_bytes(bytes(data))


def _rasterizer() -> Callable[..., bytes]:
    """Return what turns SVG into PNG."""
    try:
        from resvg_py import svg_to_bytes
    except ModuleNotFoundError:
        raise UnsupportedError(
            "a PNG needs the extra 'pictures': pip install 'qcompiler[pictures]'; an SVG does not"
        ) from None
    drawn: Callable[..., bytes] = svg_to_bytes
    return drawn
