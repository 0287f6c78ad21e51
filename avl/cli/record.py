"""``python -m avl record IMAGE "question" --out FILE.json``: a run as a trace, with its attention and the spread of its times.

What the page opens with, what the README's pictures show and what tests replay are such files (``assets/traces``).
"""

from __future__ import annotations

from pathlib import Path

from avl.cli.compare import parser, run, table, write
from avl.trace import Error


def main(argv: list[str]) -> int:
    """Run the command."""
    options = parser("record", __doc__)
    options.set_defaults(repeats=5)
    options.add_argument("--out", type=Path, required=True, help="the trace (JSON); the page shows the first file of assets/traces")
    options.add_argument("--no-scores", action="store_true", help="leave the attention out: the file is a tenth as large")
    options.add_argument("--answer", default="", help="the right answer, if there is one")
    chosen = options.parse_args(argv)
    if chosen.out.suffix != ".json":
        raise ValueError(f"--out {chosen.out} is not a trace's name: it ends in .json")
    trace = run(chosen, scores=not chosen.no_scores)
    if trace.of(Error):
        return 1
    if chosen.answer:
        trace.meta["expected"] = chosen.answer
    write(trace, chosen.out)
    print(f"{table(trace)}\n\ntrace written to {chosen.out} ({chosen.out.stat().st_size / 1e6:.1f} MB)")
    return 0
