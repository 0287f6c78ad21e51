"""A stand-in for the Hugging Face Hub on this machine: repositories are folders; what is asked for is remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c" * 40


@contextlib.contextmanager
def hub(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve folders by their ids. Yield the address for HF_ENDPOINT, and the files that were asked for, of those that are fetched whole."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.split("?")[0].strip("/")
            if path.startswith("api/models/"):
                name = "/".join(path.split("/")[2:4])
                files = sorted(file for file in repositories[name].iterdir() if file.is_file()) if name in repositories else None
                if files is None:
                    self.tell(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                elif "/" in path.partition("/tree/")[2]:  # a folder inside, of which there is none
                    self.tell(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
                elif "/tree/" in path:
                    self.tell(200, [{"type": "file", "path": one.name, "size": one.stat().st_size, "oid": etag(one)} for one in files])
                else:
                    self.tell(200, {"id": name, "sha": COMMIT, "siblings": [{"rfilename": one.name} for one in files]})
                return
            name, _, rest = path.partition("/resolve/")
            file = repositories.get(name, Path("/nowhere")) / rest.partition("/")[2]
            if not file.is_file():
                self.tell(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return
            self.send_response(200)
            for key, value in (("ETag", f'"{etag(file)}"'), ("X-Repo-Commit", COMMIT), ("Content-Length", file.stat().st_size)):
                self.send_header(key, str(value))
            self.end_headers()
            if body:
                asked.append(file.name)
                self.wfile.write(file.read_bytes())

        def tell(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            for key, one in {"Content-Type": "application/json", "Content-Length": str(len(text)), **(headers or {})}.items():
                self.send_header(key, one)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def etag(file: Path) -> str:
    """Return a name of a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
