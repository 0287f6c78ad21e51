"""What a missing program does to the test of the image."""

from __future__ import annotations

import pytest
from tools import need


def test_a_missing_program_skips_with_the_reason_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    need("sh")
    with pytest.raises(pytest.skip.Exception, match="not on PATH: no-such-program"):
        need("sh", "no-such-program")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"not on PATH: no-such-program .*in CI the image must be built and run"):
        need("sh", "no-such-program")
