"""Real pages over made-up engines, for browser tests, all in one process.

``python tests/ui/serve_fake.py`` reads a line of options a page, as a JSON list, and serves each page at once:
``["--port", "8123", "--kind", "tiles", "--pace", "0.02"]``; ``{"close": 8123}`` ends one. It ends with its standard input.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from fake import Fake, about, measure_with  # noqa: E402 (the path is set above)

from avl import trace  # noqa: E402
from avl.ui import gallery, page  # noqa: E402
from avl.ui.limits import Limits  # noqa: E402

PAGES: dict[int, page.Page] = {}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    made.add_argument("--port", type=int, required=True)
    made.add_argument("--kind", default="one")
    made.add_argument("--layers", type=int, default=8)
    made.add_argument("--side", type=int, default=24)
    made.add_argument("--pace", type=float, default=0.03)
    made.add_argument("--prefill", type=float, default=0.2)
    made.add_argument("--fail-at", type=int)
    made.add_argument("--context", type=int, help="most tokens of prompt and answer")
    made.add_argument("--recorded", help="a trace to open with")
    made.add_argument("--real", action="store_true", help="as for a model that is not the bundled one")
    made.add_argument("--refuse", help="fail with this sentence before the first event")
    made.add_argument("--away", type=float, default=2.0, help="seconds after which a run that no page reads is ended")
    made.add_argument("--gpu", action="store_true")
    made.add_argument("--text", action="append", help="the words of every answer, instead of the usual ones")
    return made


def serve(options: argparse.Namespace) -> None:
    """Start one page and return."""
    fake = Fake(
        kind=options.kind, layers=options.layers, side=options.side, pace=options.pace, prefill=options.prefill, fail_at=options.fail_at,
        device_bytes=options.gpu, text=options.text, refuse=options.refuse,
    )  # fmt: skip
    recorded = trace.Trace.from_json(Path(options.recorded).read_text("utf-8")) if options.recorded else None
    if options.real:
        recorded = gallery.recording(bundled=False)
    facts = {"layers": options.layers, "n_image": fake.side**2, "measure": measure_with(fake), "context": options.context}
    built = page.build(
        fake, about(**facts, bundled=not options.real),
        recorded=recorded, limits=Limits(away_seconds=options.away),
    )  # fmt: skip
    built.launch(server_port=options.port, prevent_thread_lock=True)
    PAGES[options.port] = built


def close(port: int) -> None:
    """End one page: each polls its queue, and dozens of them leave no time for the one that is tested."""
    built = PAGES.pop(port)
    built.transport.close()
    built.blocks.server.config.timeout_graceful_shutdown = 1
    built.blocks.close(verbose=False)
    built.remove_files()


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, dict):
            close(asked["close"])
        else:
            serve(parser().parse_args(asked))


if __name__ == "__main__":
    main()
