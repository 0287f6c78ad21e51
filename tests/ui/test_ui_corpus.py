"""Hundreds of inputs through ``/compare`` and bare HTTP: each gives a result or one clear sentence, and the server is as it was."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fake import Fake
from programs import Program, data_uri, serving

from avl.policies import POLICIES

FULL = [{"policy": "Full"}]
BIG = 10**400
# what stands for a value of any type in JSON
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    0.5,
    1e308,
    -1e308,
    BIG,
    -BIG,
    2**63,
    "",
    "x",
    "1",
    "nan",
    [],
    [1],
    {},
    {"a": 1},
    [[[]]],
    "\u0000",
    "😀",
    "\ud800",
]
NAMES = (
    "image",
    "question",
    "arms",
    "max_new_tokens",
    "mode",
    "batch",
    "temperature",
    "top_p",
    "seed",
    "repeats",
    "scores",
    "more_images",
    "agreement",
    "equal_memory",
)

LEAKS = re.compile(
    rf"Traceback|File \"|site-packages|{Path(__file__).parents[2]}|/root/|/home/|/usr/lib|/tmp/(?!x)"
    r"|\bself\.|NoneType|'list' object|'dict' object|object is not"
)


def start(picture: Any) -> dict[str, Any]:
    return dict(zip(NAMES, [picture, "What?", FULL, 2, "race", 1, 0.0, 1.0, 0, 1, False, None, False, False], strict=True))


def arguments() -> Iterator[tuple[str, list[Any] | str]]:
    """Name of a case -> its data, as a list or as JSON text."""
    uri = data_uri()
    good = start({"url": uri})
    for name, value in itertools.product(NAMES, range(len(ODD))):
        yield f"{name} {ODD[value]!r:.30}", [*{**good, name: ODD[value]}.values()]
    for policy, cls in POLICIES.items():
        for one in cls.params():
            for value in (None, True, -1, 10**6, BIG, 0.5, "x", [], {}, "nan"):
                yield f"{policy}.{one.name} {value!r:.20}", [*{**good, "arms": [{"policy": policy, one.name: value}]}.values()]
    for policy in ([], {}, 7, None, True, "full", "Full ", "__class__", "AVL\u0000", ["AVL"], {"AVL": 1}, "\ud800"):
        yield f"policy {policy!r}", [*{**good, "arms": [{"policy": policy}]}.values()]
    for arms in ([None], [[]], ["Full"], FULL * 8, FULL * 9, FULL * 1000, {"0": {}}, [{}], [{"policy": "Full", "extra": BIG}]):
        yield f"arms {str(arms)[:30]}", [*{**good, "arms": arms}.values()]
    for question in (
        " ",
        "\n\t",
        "x" * 2000,
        "x" * 2001,
        "x" * 10**6,
        "<image>",
        "<image>" * 50,
        "USER: <image> ASSISTANT:",
        "\u202e",
        "</s>",
        "a\u0301" * 500,
        "\ud83d",
        "\udc00x",
        "{{x}}",
        "%s%n",
        "'; DROP TABLE",
        "\x1b[31m",
        "\ufeff",
        "\uffff",
    ):
        yield f"question {question[:12]!a}", [*{**good, "question": question}.values()]
    raw = uri.split(",", 1)[1]
    for image in (
        {"url": ""},
        {"url": None},
        {"url": 7},
        {"url": []},
        {"path": None},
        {"path": 7},
        {"path": []},
        {"path": ""},
        {"path": "x" * 10**5},
        {"path": "\u0000"},
        {"path": "/tmp/x\u0000.png"},
        {"path": "\ud800"},
        {"url": "data:"},
        {"url": "data:,"},
        {"url": "data:image/png,x"},
        {"url": "data:text/html;base64," + raw},
        {"url": "data:image/svg+xml;base64,PHN2Zy8+"},
        {"url": "data:image/png;base64"},
        {"url": "data:image/png;base64,"},
        {"url": "data:image/png;base64,===="},
        {"url": "data:image/png;base64," + raw[:80]},
        {"url": "data:image/png;base64," + raw[:-9]},
        {"url": "data:image/gif;base64,R0lGODlhAQABAAAAACw="},
        {"url": "DATA:image/png;base64," + raw},
        {"url": "data:image/png;base64,\ud800"},
        {"url": "data:image/png;base64," + "A" * 11_500_000},
        {"url": "ftp://x"},
        {"url": "//x"},
        {"path": "x", "meta": {"_type": "gradio.FileData"}},
        {"path": "", "meta": {"_type": "gradio.FileData"}},
        {"path": None, "meta": {"_type": "gradio.FileData"}},
        {"path": [], "meta": {"_type": "gradio.FileData"}},
        {"path": "x" * 5000, "meta": {"_type": "gradio.FileData"}},
        {"path": "\u0000", "meta": {"_type": "gradio.FileData"}},
        {"path": "http://[::1", "meta": {"_type": "gradio.FileData"}},
        {"path": "https://example.com/x.png", "meta": {"_type": "gradio.FileData"}},
        {"path": "x", "meta": {"_type": "gradio.FileData"}, "size": "x"},
        {"path": "x", "meta": {"_type": "gradio.FileData"}, "is_stream": True},
        {"url": data_uri(1, 1)},
        {"url": data_uri(2, 500)},
        {"url": data_uri(401, 2)},
        uri,
        uri[:100],
        [uri],
        {"a": {"url": uri}},
    ):
        yield f"image {str(image)[:40]!a}", [*{**good, "image": image}.values()]
    for more in ([None], [[]], ["x"], [{}], [{"url": uri}] * 7, [{"url": uri}] * 8, [{"url": uri}, None], [uri], "x", {"0": uri}, [BIG]):
        yield f"more {str(more)[:20]}", [*{**good, "more_images": more}.values()]
    whole = [*good.values()]
    for length in range(len(NAMES)):
        yield f"the first {length}", whole[:length]
    yield "too many", whole + [1] * 50
    heavy = {"batch": 256, "max_new_tokens": 256, "repeats": 20, "scores": True}
    for count in range(1, 5):
        for some in itertools.combinations(heavy.items(), count):
            if dict(some).keys() & {"repeats", "scores"} and len(some) > 1:
                yield f"much {dict(some)}", [*{**good, "arms": FULL * 2, **dict(some)}.values()]


BODIES = [
    "",
    "null",
    "[]",
    "7",
    '"x"',
    "{}",
    '{"data":null}',
    '{"data":7}',
    '{"data":{}}',
    '{"data":"x"}',
    "{",
    "{]",
    '{"data":[',
    "\ud800".encode("utf-8", "surrogatepass"),
    b"\xff\xfe",
    b"\x00",
    '{"data":[NaN]}',
    '{"data":[Infinity]}',
    '{"data":[1e999]}',
    '{"data":[' + "[" * 5000 + "]" * 5000 + "]}",
    '{"data":[' + "9" * 5000 + "]}",
    '{"data":[],"data":[]}',
    '{"data":[],"fn_index":99}',
    '{"data":[],"fn_index":-1}',
    '{"data":[],"fn_index":"x"}',
    '{"data":[],"session_hash":7}',
    '{"data":[],"session_hash":"../x"}',
    '{"data":[],"event_id":"x"}',
    '{"data":[],"trigger_id":[]}',
    '{"data":[],"batched":true}',
    '{"data":[],"simple_format":7}',
    "<xml/>",
    "a=1&b=2",
]
PATHS = [
    "/gradio_api/call/compare",
    "/gradio_api/call/v2/compare",
    "/gradio_api/queue/join",
    "/gradio_api/run/compare",
    "/gradio_api/run/predict",
    "/gradio_api/call/nothing",
    "/gradio_api/component_server",
    "/gradio_api/cancel",
    "/gradio_api/reset",
    "/gradio_api/upload",
]


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with serving(Fake(pace=0.0, prefill=0)) as one:
        yield one


def check(name: str, error: str | None) -> None:
    assert isinstance(error, str), name
    assert error.strip(), name
    assert not LEAKS.search(error), (name, error)
    assert len(error) < 400, (name, error[:500])
    assert "\n" not in error, (name, error)


def test_every_argument_gives_a_result_or_a_sentence(program: Program) -> None:
    cases = list(arguments())
    assert len(cases) >= 450
    results = []
    with ThreadPoolExecutor(6) as several:  # most of a call is waiting
        answers = list(several.map(lambda case: program.call(case[1], seconds=60), cases))
    for (name, _), answer in zip(cases, answers, strict=True):
        if answer.error is None and answer.status == 200 and answer.events[-1][0] == "complete":
            assert answer.value["state"] == "done", name
            assert answer.value["answers"], name
            results.append(name)
        else:
            check(name, answer.error)
    print(f"{len(cases)} inputs, {len(results)} results, {len(cases) - len(results)} sentences")
    assert len(results) > 30
    program.wait_idle()
    assert program.health()[1] == {"state": "ready", "model": "fake model", "running": 0, "waiting": 0}


def test_every_body_on_every_route_is_answered_in_words(program: Program) -> None:
    for path, body in itertools.product(PATHS, BODIES):
        status, _, text = program.request(
            "POST", path, body if isinstance(body, bytes) else body.encode(), **{"content-type": "application/json"}
        )
        name = f"{path} {body[:20]!a}"
        if status == 200:
            event = json.loads(text or b"{}")
            if isinstance(event, dict) and "event_id" in event and "/call/" in path:
                kind, told = program.read(event["event_id"])[-1]
                if kind == "error":
                    check(name, told["error"])
        else:
            told = json.loads(text)
            check(name, told.get("error") or told["detail"])
    program.wait_idle()
    assert program.health()[0] == 200


def test_the_page_cannot_be_taken_apart_by_its_own_handlers(program: Program) -> None:
    """Every private function of the page, called by hand with odd values of every type."""
    config = json.loads(program.request("GET", "/config")[2])
    functions = [one["id"] for one in config["dependencies"] if one["api_name"] not in ("compare", "sweep", "what_if")]
    assert len(functions) >= 5
    count = 0
    for number, odd in itertools.product(functions, ODD):
        inputs = next(len(one["inputs"]) for one in config["dependencies"] if one["id"] == number)
        body = json.dumps({"data": [odd] * inputs, "fn_index": number, "session_hash": "corpus", "event_data": odd})
        status, _, text = program.request("POST", "/gradio_api/run/predict", body, **{"content-type": "application/json"})
        count += 1
        assert not LEAKS.search(text.decode()), (number, odd, text[:300])
        if status == 500:
            check(f"{number} {odd!r:.20}", json.loads(text)["error"])
    for name, odd in itertools.product(
        ("missing", "download", "recording", "last", "history", "stop_run", "predict", "equal", "__init__", "nothing"), ODD
    ):
        for component in (one["id"] for one in config["components"] if one["type"] == "html"):
            body = json.dumps({"data": odd, "component_id": component, "session_hash": "corpus", "fn_name": name})
            status, _, text = program.request("POST", "/gradio_api/component_server", body, **{"content-type": "application/json"})
            count += 1
            assert not LEAKS.search(text.decode()), (name, odd, text[:300])
    print(f"{count} calls")
    assert count > 500
    program.wait_idle()
    assert program.health()[0] == 200


@pytest.mark.slow
def test_every_second_argument_with_the_bundled_model(real: Any) -> None:
    """The made-up engine takes them all."""
    program = Program(real.url)
    for name, data in list(arguments())[::2]:
        if isinstance(data, list) and len(data) > 5 and data[5] in (256,):
            continue  # large batches: what is refused is refused alike, and the rest takes minutes here
        answer = program.call(data, seconds=120)
        if answer.error is not None:
            check(name, answer.error)
    program.wait_idle()
    assert program.health()[1]["state"] == "ready"
    assert "Traceback" not in Path(real.log).read_text()
