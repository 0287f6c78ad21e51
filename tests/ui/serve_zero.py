"""``app.py`` as it runs on ZeroGPU: the real package ``spaces``, its CUDA emulation and its forked workers, and two stand-ins.

A stand-in for Hugging Face's device API, which grants every request unless told otherwise and notes what it was asked; and one for the
GPU: in a worker, tensors that were "on the GPU" are those of the CPU. ``python tests/ui/serve_zero.py DEVICES --port 8123`` takes the
arguments of ``app.py`` behind the port of the API. There a test may POST ``/answers`` (``{"refuse": {…}}``, ``{"pace": seconds}`` for
every step) and GET what was asked.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]


class Devices:
    """The stand-in for the device API."""

    def __init__(self, port: int) -> None:
        self.asked: list[dict[str, Any]] = []
        self.refusal: dict[str, Any] | None = None
        self.pace = RawValue("d", 0.0)  # shared with the workers
        self.worker: int | None = None  # the process that has the device, or had it last
        devices = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                parts, size = urlsplit(self.path), int(self.headers.get("content-length", 0))
                query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                self._send(*devices.answer(parts.path, json.loads(self.rfile.read(size) or "{}") or query))

            def do_GET(self) -> None:
                self._send(200, {"asked": devices.asked, "worker": devices.worker})

            def _send(self, status: int, body: Any) -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str, query: dict[str, Any]) -> tuple[int, Any]:
        if path == "/answers":
            self.refusal, self.pace.value = query.get("refuse"), query.get("pace", 0.0)
            return 200, {}
        self.asked.append({"path": path, **query})
        if path == "/schedule":
            if self.refusal is not None:
                return 429, self.refusal
            idle = self.worker is not None and Path(f"/proc/{self.worker}").exists()
            return 200, {"idle": idle, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": f"token-{len(self.asked)}"}
        if path == "/allow":
            self.worker = int(query["pid"])
        return 200, {}


def no() -> bool:
    return False


def stand_in_for_a_cuda_build() -> None:
    """Give a CPU build of torch the names that the package asks for."""
    import torch

    if torch.version.cuda is None:
        torch.version.cuda = "12.8"
        torch._C._cuda_init = lambda: None
        torch.cuda._is_in_bad_fork = no  # a lambda there, which the package would pickle


def stand_in_for_the_gpu() -> None:
    """Let a worker take the CPU's tensors for the GPU's."""
    from spaces.zero import torch as zero
    from spaces.zero.torch import patching

    def move(callback: Any = None) -> None:
        for fake, original in patching.cuda_aliases.items():
            fake.data = original

    zero.pack = lambda: 0  # to disk, and from there to the GPU
    zero.init = lambda uuid: None
    zero.move = move


def paced(run: Any, pace: Any) -> Any:
    """Let every step take longer: Stop has to come in the middle of a run."""

    def slow(*arguments: Any, **options: Any) -> Iterator[Any]:
        for event in run(*arguments, **options):
            time.sleep(pace.value if event.kind == "step" else 0)
            yield event

    return slow


def main() -> int:
    port = int(sys.argv[1])
    devices = Devices(port)
    os.environ |= {
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{port}",
        "SYSTEM": "spaces",
        "SPACE_ID": "someone/avl",
    }
    from avl.cli import main as avl
    from avl.ui import durations, hosting

    durations.MOST_SECONDS = 900  # the CPU stands in for a GPU, on a machine that may be busy

    stand_in_for_a_cuda_build()
    hosting.zero_gpu()
    stand_in_for_the_gpu()
    from avl.engine import scheduler

    scheduler.run = paced(scheduler.run, devices.pace)
    return avl(sys.argv[2:], only="page", program="app.py")


if __name__ == "__main__":
    sys.exit(main())
