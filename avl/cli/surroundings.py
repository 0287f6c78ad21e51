"""What around the program a bug report needs: variables of the environment, without secrets, and folders that must be writable."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

Row = tuple[str, str, str]
"""(state, what, detail); the state is "ok", "note" or "missing"."""

_NAMES = re.compile(
    r"AVL_|HF_|HUGGING_?FACE|TRANSFORMERS_|GRADIO_|SPACES?_|CUDA_|NVIDIA_|TORCH|PYTORCH_|TRITON_|NUMBA_|OMP_NUM|MKL_NUM|ACCELERATE_|"
    r"(HTTPS?|ALL|NO)_PROXY$|XDG_CACHE_HOME$",
    re.IGNORECASE,
)
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|KEY|AUTH|CREDENTIAL", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/@\s]+@")


def variables(environment: Mapping[str, str] | None = None) -> list[Row]:
    """Return the variables that change what runs here, those with secrets without their values."""
    rows: list[Row] = []
    environment = os.environ if environment is None else environment
    for name in sorted(filter(_NAMES.match, environment)):
        value = environment[name]
        rows.append(("ok", name, "set" if _SECRET.search(name) else _USER.sub("***@", value) or "empty"))
    return rows or [("ok", "environment", "none of the variables that matter is set")]


def hub_folder() -> Path:
    """Return where huggingface_hub keeps what it downloads."""
    home = Path(os.environ.get("HF_HOME") or _caches() / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _caches() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def folders(kernels: Path) -> list[Row]:
    """Return whether the folders that downloads, compiled kernels and uploads go to can be written.

    Args:
        kernels: beside whose files numba keeps what it compiles, where no variable says otherwise.
    """
    places = {
        "downloads": hub_folder(),
        "triton's cache": Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache"),
        "numba's cache": Path(os.environ.get("NUMBA_CACHE_DIR") or (kernels if os.access(kernels, os.W_OK) else _caches() / "numba")),
        "uploads": Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()),
    }
    return [_folder(name, place) for name, place in places.items()]


def _folder(name: str, place: Path) -> Row:
    """Try to write where a folder is, or would be made."""
    there = next(one for one in (place, *place.absolute().parents) if one.exists())
    shown = f"~/{place.relative_to(Path.home())}" if place.is_relative_to(Path.home()) else str(place)  # no user's name
    state = shown if there == place else f"{shown}, to be made"
    try:
        with tempfile.NamedTemporaryFile(dir=there):
            pass
    except OSError as error:
        return ("note", name, f"{state}: cannot be written ({error.strerror}), mount or name another one")
    free = shutil.disk_usage(there).free
    return ("ok", name, f"{state}: {free / 2**30:.0f} GiB free")
