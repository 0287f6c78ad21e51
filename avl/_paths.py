"""Where the kernels and the assets lie: inside the package in a wheel, beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _find(name: str) -> Path:
    """Return the wheel's own copy of a top-level folder where there is one, else the checkout's."""
    packed = _PACKAGE / f"_{name}"
    return packed if packed.is_dir() else _PACKAGE.parent / name


KERNELS = _find("kernels")
ASSETS = _find("assets")
