"""What the tests of the image need of this machine, and where a part of it is missing: a skip, or a failure in CI."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def need(*programs: str) -> None:
    """Skip the test with the reason where it needs root and is not, or a program is missing; fail it if ``CI`` is true."""
    missing = [name for name in programs if shutil.which(name) is None]
    reason = f"not on PATH: {', '.join(missing)} (Debian has packages of these names)" if missing else None
    if reason is None and os.geteuid() != 0:
        reason = "mounting a container's file system needs root"
    if reason is None:
        return
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{reason}; in CI the image must be built and run")
    pytest.skip(reason)
