"""Without a browser its tests are skipped, with the reason; in CI they fail, so that nothing passes there untested."""

from __future__ import annotations

import importlib.util
import shutil

import pytest
from headless import chromium_or_stop


def hide_chromium(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def hide_playwright(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(("hide", "reason"), [(hide_chromium, "no Chromium"), (hide_playwright, "playwright is not installed")])
@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_chromium_or_stop_skips_at_home_and_fails_in_ci(monkeypatch, hide, reason, ci, outcome):
    monkeypatch.setenv("CI", ci)
    hide(monkeypatch)
    with pytest.raises(outcome, match=reason):
        chromium_or_stop()


def test_chromium_or_stop_returns_the_browsers_path(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/browser" if name == "google-chrome" else None)
    assert chromium_or_stop() == "/bin/browser"
