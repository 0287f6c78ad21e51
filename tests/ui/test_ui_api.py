"""``/compare``: typed, the same checks as the page, and no way to other files of the server."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from fake import Fake, about
from gradio.utils import get_upload_folder
from PIL import Image

from avl import trace
from avl.engine.request import GenerationRequest
from avl.policies import POLICIES
from avl.ui import api, page
from avl.ui.queue import ThreadTransport


def uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


@pytest.fixture
def compare() -> Any:
    transport = ThreadTransport(Fake(pace=0, prefill=0))
    yield api.endpoint(transport, about())
    transport.close()


def collect(compare: Any, *arguments: Any, **options: Any) -> list[dict[str, Any]]:
    async def go() -> list[dict[str, Any]]:
        return [value async for value in compare(*arguments, **options)]

    return asyncio.run(go())


def test_it_streams_events_and_ends_with_the_whole_trace(compare: Any, picture: Path) -> None:
    got = collect(compare, {"url": uri(picture)}, "What?", [{"policy": "Full"}, {"policy": "H2O"}], max_new_tokens=5)
    assert got[-1]["state"] == "done"
    assert len(got[-1]["answers"]) == 2
    assert got[-1]["trace"]["events"] == [event for value in got[:-1] for event in value["events"]]


def test_eight_policies_at_equal_memory_with_their_agreement(compare: Any, picture: Path) -> None:
    arms = [{"policy": name} for name in POLICIES] + [{"policy": "AVL", "S": 45, "C": 30}]
    asked = {"max_new_tokens": 12, "agreement": True, "equal_memory": True}
    last = collect(compare, {"url": uri(picture)}, "What?", arms, **asked)[-1]
    assert len(last["answers"]) == 8
    events = last["trace"]["events"]
    assert [event["arm"] for event in events if event["kind"] == "agreement"] == list(range(8))
    labels = [arm["label"] for arm in events[0]["arms"]]
    assert labels[2] != "H2O keep=50 recent=75"
    assert trace.Trace.from_json(json.dumps(last["trace"])).of(trace.Agreement, 1)[0].share == 11 / 12


def test_several_pictures_reach_the_engine_in_order(picture: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (30, 50)).save(other)
    seen: list[tuple[int, int]] = []

    def race(request: GenerationRequest, stop: Any) -> Any:
        seen.extend(image.size for image in request.images)
        yield from Fake(pace=0, prefill=0)(request, stop)

    transport = ThreadTransport(race)
    try:
        collect(api.endpoint(transport, about()), {"url": uri(picture)}, "What?", max_new_tokens=2, more_images=[{"url": uri(other)}])
        assert seen == [(96, 64), (30, 50)]
        with pytest.raises(gr.Error, match="too many pictures"):
            collect(api.endpoint(transport, about()), {"url": uri(picture)}, "What?", more_images=[{"url": uri(other)}] * 400)
    finally:
        transport.close()


@pytest.mark.parametrize(
    ("image", "question", "options", "word"),
    [
        ("picture", "", {}, "question is empty"),
        ("picture", "q", {"arms": []}, "1 to 8 arms"),
        ("picture", "q", {"arms": [{"policy": "AVL", "S": 400}]}, "S must be"),
        ("picture", "q", {"max_new_tokens": 10**7}, "max_new_tokens"),
        ("picture", "q", {"mode": "x"}, "mode"),
        ({"path": "/etc/hostname"}, "q", {}, "handle_file"),
        ({"path": "assets/gallery/street.png"}, "q", {}, "handle_file"),
        ({"url": "http://127.0.0.1/x.png"}, "q", {}, "handle_file"),
        ({"url": "data:image/png;base64,@@@"}, "q", {}, "base64"),
        ({"url": "data:image/png;base64,AAAA"}, "q", {}, "not a picture"),
        (None, "q", {}, "handle_file"),
        (7, "q", {}, "handle_file"),
        ("picture", "q", {"more_images": "x"}, "more_images must be a list"),
        ("picture", "q", {"more_images": [7]}, "handle_file"),
        ("picture", "q", {"more_images": [{"url": "data:image/png;base64,AAAA"}]}, "not a picture"),
    ],
)
def test_refusals_are_one_sentence(compare: Any, picture: Path, image: Any, question: str, options: dict[str, Any], word: str) -> None:
    with pytest.raises(gr.Error, match=word):
        collect(compare, {"url": uri(picture)} if image == "picture" else image, question, **options)


def test_uploads_are_found_and_links_out_of_the_folder_are_not(tmp_path: Path, picture: Path) -> None:
    folder = Path(get_upload_folder()) / "avl-test"
    folder.mkdir(parents=True, exist_ok=True)
    inside, outside = folder / "inside.png", folder / "outside.png"
    try:
        inside.write_bytes(picture.read_bytes())
        outside.unlink(missing_ok=True)
        outside.symlink_to(picture)
        assert api.picture_path({"path": str(inside)}, tmp_path) == inside.resolve()
        with pytest.raises(ValueError, match="handle_file"):
            api.picture_path({"path": str(outside)}, tmp_path)
        with pytest.raises(ValueError, match="handle_file"):
            api.picture_path({"path": str(folder / ".." / ".." / ".." / "etc" / "passwd")}, tmp_path)
    finally:
        inside.unlink(missing_ok=True)
        outside.unlink(missing_ok=True)


def test_the_page_offers_it_with_types() -> None:
    built = page.build(Fake(), about())
    try:
        info = built.blocks.get_api_info()
        assert list(info["named_endpoints"]) == ["/compare", "/ask_on", "/sweep", "/what_if"]
        endpoint = info["named_endpoints"]["/compare"]
        assert [parameter["parameter_name"] for parameter in endpoint["parameters"]][:3] == ["image", "question", "arms"]
        assert endpoint["parameters"][1]["type"]["type"] == "string"
        assert len(endpoint["returns"]) == 1
        told = next(fn.fn for fn in built.blocks.fns.values() if fn.api_name == "compare").__doc__
        for name, policy in POLICIES.items():
            assert f'{{"policy": "{name}"' in told
            assert all(f'"{one.name}": ' in told for one in policy.params())
        assert "POLICIES" not in told
    finally:
        built.transport.close()
