"""Find the browser of the browser tests."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """Return the path of the first Chromium on PATH."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def chromium_or_stop() -> str:
    """Return Chromium's path. Where it or Playwright is missing, skip the test with the reason, or fail it if ``CI`` is true."""
    missing = None
    path = find_chromium()
    if importlib.util.find_spec("playwright") is None:
        missing = "playwright is not installed (tests/requirements.txt names it)"
    elif path is None:
        missing = f"no Chromium on this machine: none of {', '.join(NAMES)} is on PATH"
    if missing is None:
        return str(path)
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{missing}; in CI the browser tests must run")
    pytest.skip(missing)
