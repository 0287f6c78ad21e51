"""The page in a browser with models of several families: rectangles, tiles with the whole picture beside them, tokens without a place."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port
from test_ui_families import ONE_EACH, loaded

from avl.engine import scheduler
from avl.tiny.data import scenes
from avl.ui import page, starting

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SIZE = (320, 200)
# what the panel offers for a picture of that size, and how many image tokens it has
FAMILIES: dict[str, tuple[list[str], int]] = {
    "qwen2_5_vl": (["5 × 8 tokens"], 40),
    "qwen3_vl": (["5 × 8 tokens"], 40),
    "internvl": (["1 × 2 tiles, 4 × 8 tokens", "whole picture, 4 × 4 tokens"], 48),
    "smolvlm": (["2 × 2 tiles, 8 × 8 tokens", "whole picture, 4 × 4 tokens"], 80),
    "mistral3": (["5 × 8 tokens"], 40),
    "gemma3": (["4 × 4 tokens"], 16),
    "llava_onevision": (["whole picture, 4 × 4 tokens", "tiles, 6 × 9 tokens"], 76),
    "blip-2": ([], 8),
}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    scenes.draw(5).image.resize(SIZE).save(path)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_a_visitor_compares_on(family: str, tab: Any, tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if family not in ONE_EACH:
        pytest.skip("this release of transformers has no processor for it without torchvision")
    monkeypatch.setenv(
        "GRADIO_TEMP_DIR", str(tmp_path / "uploads")
    )  # as a server has its own: another page deletes its own files as it ends
    names, n_image = FAMILIES[family]
    model, processor = loaded(family, tmp_path / "model")
    run = functools.partial(scheduler.run, model, processor)
    built = page.build(run, starting._about(model, processor, str(tmp_path / "model")))
    port = free_port()
    built.launch(server_port=port, prevent_thread_lock=True, quiet=True)
    try:
        one = tab(f"http://127.0.0.1:{port}/").open()
        one.page.wait_for_timeout(500)  # Gradio takes no file before its upload is wired, and tells nobody when that is
        one.page.locator("#avl-picture input[type=file]").set_input_files(picture)
        one.page.wait_for_selector("#avl-picture img", timeout=20_000)
        one.until("(n) => document.querySelector('#avl-gallery [data-id=size]').textContent.includes(`${n} image tokens`)", arg=n_image)
        one.page.fill("#avl-question textarea", "what is on the sign ?")
        one.set("#avl-tokens", 20)
        one.run()
        start = one.page.evaluate("window.avlPlayer.view.run.start")
        assert start["n_image"] == n_image
        assert one.tokens() == [20, 20]
        assert one.page.locator("[data-id=grid] option").all_inner_texts() == names
        assert not one.page.locator("[data-id=crop]").is_visible()
        corner = "window.avlPlayer.overlay.tokenAt(2, 2)"
        if names:
            first = next(grid["first"] for grid in start["grids"] if grid["box"][:2] == [0, 0])
            assert one.page.evaluate(corner) >= first
            one.page.locator("[data-id=overlay]").click(position={"x": 3, "y": 3})
            one.until("document.querySelector('[data-id=patch]').textContent.startsWith('Patch row 1, column 1 (token')")
        else:
            assert one.page.evaluate(corner) == -1
            assert "These tokens have no place in the picture." in one.text("legend")
        # predicted and measured agree for every family
        told = one.page.evaluate(
            "[...document.querySelectorAll('[data-id=measured] tr, [data-id=result] tr')].map((row) => row.innerText)"
            ".filter((text) => text.startsWith('KV'))"
        )
        for line in told:
            if "(predicted)" in line:
                for measured, predicted in re.findall(r"(\d+) % \((\d+) %\)", line):
                    assert measured == predicted, line
        said = one.page.locator("[data-id=warnings] li").all_inner_texts()
        assert len(said) == len(set(said)), "what holds for both arms is said once"
        title = "A-VL × LLaVA" if family.startswith("llava") else "A-VL"
        assert (one.page.title(), one.page.locator("h1").first.inner_text()) == (title, title)
        assert one.errors == []
        one.page.set_viewport_size({"width": 390, "height": 844})
        one.page.wait_for_timeout(300)
        assert one.page.evaluate("document.documentElement.scrollWidth") <= 390
    finally:
        built.transport.close()
        built.blocks.close(verbose=False)
