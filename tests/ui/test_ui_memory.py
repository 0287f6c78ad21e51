"""Nothing of a request stays after it, and nothing that a visitor sends or leaves unread grows without bound."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake import Fake
from programs import Program, data_uri, resident_mb, serving

from avl.ui import uploads
from avl.ui.limits import MB, Limits
from avl.ui.sessions import Mailboxes

ARMS = [{"policy": "Full"}, {"policy": "AVL"}]
QUICK = {"pace": 0.0, "prefill": 0.0}


def large_texts(least: int) -> int:
    """How many strings of at least so many characters this process holds in containers."""
    gc.collect()
    found = set()
    for thing in gc.get_objects():
        values = thing.values() if type(thing) is dict else thing if type(thing) in (list, tuple) else ()
        found |= {id(value) for value in list(values) if type(value) is str and len(value) >= least}
    return len(found)


@pytest.mark.parametrize("refused", [False, True], ids=["run", "refused"])
def test_no_copy_of_a_request_stays(here: Any, refused: bool) -> None:
    """Gradio kept the arguments of each call, and its last value, as the session's state: one session a call."""
    built, program = here(Fake(**QUICK))
    uri = data_uri(600, 600, noise=True)
    least = len(uri) // 2
    before = large_texts(least)
    for _ in range(4):
        answer = program.call([{"url": uri}, "" if refused else "What?", ARMS, 3])
        assert (answer.error is not None) == refused
    program.wait_idle()
    assert large_texts(least) <= before
    for session in built.blocks.app.state_holder.session_data.values():
        assert not session.config_values


def test_a_visitor_keeps_the_state_that_the_page_needs(here: Any) -> None:
    built, _ = here(Fake(**QUICK))
    holder = built.blocks.app.state_holder
    known = next(number for number, block in built.blocks.blocks.items() if type(block).__name__ == "State")
    holder["visitor"][known] = {"questions": ["Why?"]}
    assert holder["visitor"][known] == {"questions": ["Why?"]}


def test_the_number_of_sessions_is_bounded(here: Any) -> None:
    built, program = here(Fake(**QUICK), limits=Limits(sessions=5))
    for _ in range(12):
        program.call([None, "q"])
    assert len(built.blocks.app.state_holder.session_data) <= 6
    assert len(built.application.boxes) <= 6


def send(program: Program, head: str, chunks: Any) -> str:
    """Send a request by hand; return what came back, even where the server stopped reading."""
    with socket.create_connection((program.host, program.port), timeout=20) as raw:
        raw.sendall(head.replace("\n", "\r\n").encode())
        try:
            for chunk in chunks:
                raw.sendall(chunk)
        except OSError:
            pass
        got = b""
        try:
            while part := raw.recv(65536):
                got += part
        except OSError:
            pass
    return got.decode(errors="replace")


HEAD = "POST {path} HTTP/1.1\nHost: 127.0.0.1\nContent-Type: {kind}\n{length}\n\n"
ROUTES = [
    "/gradio_api/call/compare",
    "/gradio_api/call/v2/compare",
    "/gradio_api/queue/join",
    "/gradio_api/run/compare",
    "/gradio_api/api/compare",
    "/gradio_api/component_server",
    "/gradio_api/cancel",
    "/gradio_api/reset",
    "/healthz",
]


@pytest.fixture(scope="module")
def small() -> Iterator[Program]:
    """A page that takes bodies of 64 kB and uploads of 256 kB."""
    kb = 1024
    limits = Limits(body_bytes=64 * kb, upload_bytes=256 * kb, visitor_bytes=600 * kb, file_bytes=128 * kb)
    with serving(Fake(**QUICK), limits=limits) as one:
        yield one


@pytest.mark.parametrize("path", ROUTES)
def test_a_declared_body_is_refused_before_it_is_read(small: Program, path: str) -> None:
    got = send(small, HEAD.format(path=path, kind="application/json", length="Content-Length: 3000000000"), [])
    assert " 413 " in got.splitlines()[0]
    assert "larger than" in got


@pytest.mark.parametrize("path", ROUTES[:7])
def test_a_chunked_body_is_counted(small: Program, path: str) -> None:
    chunk = b"10000\r\n" + b"[" * 65536 + b"\r\n"
    got = send(small, HEAD.format(path=path, kind="application/json", length="Transfer-Encoding: chunked"), [chunk] * 200)
    assert not got or " 413 " in got.splitlines()[0]
    assert small.health()[0] == 200


def multipart(size: int, files: int = 1) -> tuple[bytes, str]:
    part = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n' + b"x" * size + b"\r\n"
    )
    return part * files + b"--b--\r\n", "multipart/form-data; boundary=b"


def test_uploads_are_bounded_each_and_by_the_hour(small: Program) -> None:
    body, kind = multipart(100_000)
    told = [small.request("POST", "/gradio_api/upload", body, **{"content-type": kind})[0] for _ in range(8)]
    assert told[:5] == [200] * 5
    assert told[-1] == 429
    other = Program(f"http://{small.host}:{small.port}/", **{"x-forwarded-for": "203.0.113.9"})
    assert other.request("POST", "/gradio_api/upload", body, **{"content-type": kind})[0] == 200, "another visitor has his own share"
    body, kind = multipart(100_000, files=4)
    status, _, text = other.request("POST", "/gradio_api/upload", body, **{"content-type": kind})
    assert (status, b"larger than" in text) == (413, True)


def test_the_oldest_uploads_make_room(tmp_path: Path) -> None:
    for number in range(10):
        path = tmp_path / f"{number}" / "picture.png"
        path.parent.mkdir()
        path.write_bytes(b"x" * 1000)
        os.utime(path, (1000 + number, 1000 + number))
    broken = tmp_path / "tmpbroken"
    broken.write_bytes(b"x")
    os.utime(broken, (5000, 5000))
    uploads.Quota(tmp_path, 6000).make_room(1000, keep={str(tmp_path / "0" / "picture.png")})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "6", "7", "8", "9"]


def test_uploads_have_a_folder_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    folder = uploads.make_folder()
    assert folder.parent == tmp_path
    assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
    (folder / "x").mkdir()
    uploads.remove_folder(folder)
    assert not folder.exists()
    assert tmp_path.exists()


def test_a_run_that_nobody_reads_is_ended_and_forgotten(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avl.ui.application.SWEEP_SECONDS", 0.2)
    fake = Fake(pace=0.02, prefill=0)
    built, program = here(fake, limits=Limits(unread_seconds=1))
    uri = data_uri()
    status, text = program.post([{"url": uri}, "What?", ARMS, 256])
    assert status == 200
    time.sleep(0.5)
    assert program.health()[1]["running"] == 1
    program.wait_idle(10)
    limit = time.monotonic() + 10
    while json.loads(text)["event_id"] in built.application.boxes and time.monotonic() < limit:
        time.sleep(0.05)
    assert built.application.boxes.unread == 0
    assert fake.log[-1] == "freed"
    # one that is read runs to its end, however long it takes
    answer = program.call([{"url": uri}, "What?", ARMS, 60])
    assert len(answer.value["answers"]) == 2


def test_mailboxes_tell_how_long_a_message_waited() -> None:
    async def go() -> None:
        boxes = Mailboxes(2)
        boxes["a"] = asyncio.Queue()
        boxes["a"].put_nowait(1)
        await asyncio.sleep(0.05)
        assert boxes.age("a") >= 0.05
        assert boxes.expired(0.01, set()) == ["a"]
        assert boxes.expired(0.01, {"a"}) == []
        await boxes["a"].get()
        assert boxes.age("a") == 0
        assert boxes.expired(0.001, set()) == []
        boxes["b"] = boxes["c"] = asyncio.Queue()
        assert list(boxes) == ["b", "c"]

    asyncio.run(go())


def test_pictures_of_those_who_wait_are_bounded(here: Any) -> None:
    _, program = here(Fake(pace=0.05, prefill=0), limits=Limits(picture_bytes=100_000))
    uri = data_uri(150, 150)
    for _ in range(2):
        assert program.post([{"url": uri}, "What?", ARMS, 100])[0] == 200
        time.sleep(0.3)
    assert "smaller picture" in program.call([{"url": uri}, "What?", ARMS, 3]).error


def test_a_larger_picture_than_the_limit_is_refused_in_words(small: Program) -> None:
    assert "larger than" in small.call([{"url": data_uri(200, 200, noise=True)}, "What?"]).error


@pytest.mark.slow
def test_ninety_large_pictures_leave_nothing(serve: Any) -> None:
    """9.5 MB of JSON a call: after the first thirty, memory stays where it is."""
    program = Program(serve("--pace", "0.0005", "--prefill", "0.001").url)
    process = serve.process.popen.pid
    uri = data_uri(1580, 1580, noise=True)
    sizes = []
    for number in range(90):
        assert program.call([{"url": uri}, "What?", ARMS, 3]).error is None
        if number in (0, 30, 89):
            sizes.append(resident_mb(process))
    print("resident MB after 1, 31 and 90 runs:", [round(size) for size in sizes])
    assert sizes[2] - sizes[1] < 60, sizes


@pytest.mark.slow
def test_large_pictures_leave_nothing_with_the_bundled_model(real: Any, real_process: Any) -> None:
    program = Program(real.url)
    uri = data_uri(1580, 1580, noise=True)
    sizes = []
    for number in range(28):
        assert program.call([{"url": uri}, "What?", ARMS, 2]).error is None
        if number in (0, 10, 27):
            sizes.append(resident_mb(real_process.popen.pid))
    print("resident MB after 1, 11 and 28 runs:", [round(size) for size in sizes])
    assert sizes[2] - sizes[1] < 80, sizes


def test_one_request_cannot_hold_more_than_all_may(here: Any) -> None:
    _, program = here(Fake(**QUICK), limits=Limits(pending_bytes=200_000, body_bytes=MB))
    assert "too much at once" in program.call([{"url": "data:image/png;base64," + "A" * 400_000}, "q"]).error
