"""CONTRIBUTING.md's recipe for a chart, walked: the chart is drawn, has its numbers and its help, and breaks nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_recipes import run, walk

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_add_a_chart(tab: Any, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    walk("Add a chart", tree)
    file = tmp_path / "report.html"
    run(
        tree,
        "-c",
        "import sys; from pathlib import Path; from avl.ui import gallery, report;"
        "Path(sys.argv[1]).write_text(report.page(gallery.recording(True)), encoding='utf-8')",
        str(file),
    )
    one = tab(file.as_uri())
    one.page.goto(file.as_uri())
    one.page.wait_for_selector(".avl-player[data-ready]")
    one.until("document.querySelectorAll('[data-id=rate] .scatterlayer path.js-line').length === 2")
    assert one.page.locator("[data-id=rateKeys] .avl-key").count() == 2
    assert one.page.locator("[data-id=rateHead] button").count() == 1
    assert one.errors == []
