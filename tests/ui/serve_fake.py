"""A real server over the made-up engine, for browser tests: ``python tests/ui/serve_fake.py --port N --kind tiles --pace 0.02 …``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from fake import Fake, about  # noqa: E402 (the path is set above)

from avl.ui import page  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kind", default="one")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--side", type=int, default=24)
    parser.add_argument("--pace", type=float, default=0.03)
    parser.add_argument("--prefill", type=float, default=0.2)
    parser.add_argument("--fail-at", type=int)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--text", action="append", help="the words of every answer, instead of the usual ones")
    options = parser.parse_args()
    fake = Fake(
        kind=options.kind, layers=options.layers, side=options.side, pace=options.pace, prefill=options.prefill, fail_at=options.fail_at,
        device_bytes=options.gpu, text=options.text,
    )  # fmt: skip
    built = page.build(fake, about(layers=options.layers, n_image=fake.side**2))
    built.launch(server_port=options.port)


if __name__ == "__main__":
    main()
