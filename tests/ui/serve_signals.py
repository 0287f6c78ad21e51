"""``serve()`` as the command line calls it, over a made-up engine: for tests of its start and its end.

``python tests/ui/serve_signals.py PORT KIND``; KIND: quick, stuck (the engine hears no stop), loading (it never loads), warming (it never
warms up), launching (the port answers seconds before Gradio is done with its start).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from fake import Fake, about  # noqa: E402 (the path is set above)

from avl import trace  # noqa: E402
from avl.engine.request import GenerationRequest  # noqa: E402
from avl.ui import serve, starting  # noqa: E402


def main(port: int, kind: str) -> None:
    fake = Fake(pace=0.02, prefill=0)

    def run(_: Any, __: Any, request: GenerationRequest, stop: threading.Event) -> Iterator[trace.Event]:
        yield from fake(request, threading.Event() if kind == "stuck" else stop)

    def load(*_: Any, **__: Any) -> Any:
        print("loading", flush=True)
        while kind == "loading":
            time.sleep(0.1)
        return SimpleNamespace(device="cpu"), None

    def warm_up(_: Any, __: Any, ___: Any, stop: threading.Event) -> None:
        print("warming", flush=True)
        if kind == "warming":
            stop.wait()

    def listen(*arguments: Any) -> None:
        launch(*arguments)
        if kind == "launching":
            time.sleep(3)

    launch, serve._listen = serve._listen, listen
    starting.load = load
    starting.scheduler = SimpleNamespace(run=run)
    starting._about = lambda *_, **__: about()
    starting._warm_up = warm_up
    starting.idle = lambda _: {}
    serve.serve(port=port)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
