"""``python -m avl compare IMAGE "question"``: the race in a terminal, both answers and a table; ``--out`` keeps the trace."""

from __future__ import annotations

import argparse
import base64
import io
import sys
from pathlib import Path

from avl.engine import MODES, race
from avl.models import CHECKPOINTS, load, open_image
from avl.policies import AVL, H2O, FastV, Full, Policy, StreamingLLM
from avl.trace import End, Error, Prefill, Step, Trace


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    options = argparse.ArgumentParser(prog="python -m avl compare", description=__doc__)
    options.add_argument("image", nargs="+", help="one picture, or several")
    options.add_argument("question")
    options.add_argument("--model", default="tiny", help=f"tiny, {', '.join(CHECKPOINTS)}, a Hub id or a folder")
    options.add_argument("--revision")
    options.add_argument("--device", default="auto")
    options.add_argument("--dtype", default="auto")
    options.add_argument("--against", default="full", choices=("full", "h2o", "fastv", "streaming-llm"), help="what A-VL is compared with")
    for name, default in (("S", 45.0), ("C", 30.0), ("P", 90.0), ("T", None)):
        options.add_argument(f"-{name}", type=_percent, default=default, help=f"percent, or off (default {default or 'off'})")
    options.add_argument("-K", type=int, default=3, help="an update step every K steps (default 3)")
    options.add_argument("--max-new-tokens", type=int, default=96)
    options.add_argument("--mode", default="race", choices=MODES)
    options.add_argument("--temperature", type=float, default=0.0)
    options.add_argument("--seed", type=int)
    options.add_argument("--out", type=Path, help="write the trace (JSON) here")
    return options


def _percent(text: str) -> float | None:
    return None if text == "off" else float(text)


def main(argv: list[str]) -> int:
    """Run the command."""
    options = parser().parse_args(argv)
    others: dict[str, Policy] = {"full": Full(), "h2o": H2O(), "fastv": FastV(), "streaming-llm": StreamingLLM()}
    policies = [others[options.against], AVL(S=options.S, C=options.C, K=options.K, P=options.P, T=options.T)]
    pictures = [open_image(path) for path in options.image]
    model, processor = load(options.model, device=options.device, dtype=options.dtype, revision=options.revision)
    trace = Trace()
    failed = False
    for event in race(
        model,
        processor,
        pictures,
        options.question,
        policies,
        max_new_tokens=options.max_new_tokens,
        mode=options.mode,
        temperature=options.temperature,
        seed=options.seed,
    ):
        trace.append(event)
        if isinstance(event, Prefill | Step) and sys.stderr.isatty():
            done = [len(trace.of(Step, arm)) for arm in range(len(policies))]
            print(f"\r  {done[0]:>4} / {done[1]:>4} tokens", end="", file=sys.stderr, flush=True)
        if isinstance(event, Error):
            failed = True
            print(f"compare: {event.message}", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r" + " " * 30 + "\r", end="", file=sys.stderr)
    print(table(trace))
    if options.out is not None:
        trace.images = [_data_uri(picture) for picture in pictures]
        options.out.write_text(trace.to_json(), encoding="utf-8")
        print(f"\ntrace written to {options.out}")
    return 1 if failed else 0


def table(trace: Trace) -> str:
    """Both answers, then one line per arm: first token, median step, rate, KV stored and read (mean over the steps)."""
    start, ends = trace.start, {end.arm: end for end in trace.of(End)}
    hardware = start.machine["gpu"] or start.machine["cpu"]
    lines = [f"{start.model['name']} · {start.model['dtype']} · {hardware} · {start.n_image} image tokens", ""]
    for number, end in sorted(ends.items()):
        lines += [f"{start.arms[number].label}:", f"  {end.text}", ""]
    lines.append(f"{'':<34}{'first token':>12}{'ms/token':>10}{'tokens/s':>10}{'KV stored':>12}{'KV read':>12}")
    for number, end in sorted(ends.items()):
        rate = f"{1000 / end.median_ms:.1f}" if end.median_ms else "–"
        step = f"{end.median_ms:.2f}" if end.median_ms else "–"
        lines.append(
            f"{start.arms[number].label:<34}{end.ttft_ms:>9.0f} ms{step:>10}{rate:>10}"
            f"{end.stored_bytes / 2**20:>8.2f} MiB{end.read_bytes / 2**20:>8.2f} MiB"
        )
    return "\n".join(lines)


def _data_uri(picture: object) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")  # type: ignore[attr-defined]
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
