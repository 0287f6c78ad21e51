"""``python -m avl compare IMAGE "question"``: the race in a terminal, live; ``--out`` keeps it as a trace or as an offline page."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from avl.engine.request import MODES
from avl.engine.scheduler import race
from avl.models.images import data_uri, open_image
from avl.models.loading import CHECKPOINTS, load
from avl.policies import AVL, H2O, FastV, Full, Policy, StreamingLLM
from avl.trace import End, Error, Prefill, Repeat, Scores, Start, Step, Trace


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Options of every command that asks one question about one picture under two policies."""
    options = argparse.ArgumentParser(prog=f"python -m avl {name}", description=description)
    options.add_argument("image", nargs="+", help="one picture, or several")
    options.add_argument("question")
    options.add_argument("--model", default="tiny", help=f"tiny, {', '.join(CHECKPOINTS)}, a Hub id or a folder")
    options.add_argument("--revision")
    options.add_argument("--device", default="auto")
    options.add_argument("--dtype", default="auto")
    options.add_argument("--against", default="full", choices=("full", "h2o", "fastv", "streaming-llm"), help="what A-VL is compared with")
    for letter, default in (("S", 45.0), ("C", 30.0), ("P", 90.0), ("T", None)):
        options.add_argument(f"-{letter}", type=_percent, default=default, help=f"percent, or off (default {default or 'off'})")
    options.add_argument("-K", type=int, default=3, help="an update step every K steps (default 3)")
    options.add_argument("--max-new-tokens", type=int, default=96)
    options.add_argument("--mode", default="race", choices=MODES)
    options.add_argument("--batch", type=int, default=1, help="the same request so many times at once")
    options.add_argument("--repeats", type=int, default=1, help="run it so many times: times come with a spread")
    options.add_argument("--temperature", type=float, default=0.0)
    options.add_argument("--seed", type=int)
    return options


def _percent(text: str) -> float | None:
    return None if text == "off" else float(text)


def main(argv: list[str]) -> int:
    """Run the command."""
    options = parser("compare", __doc__)
    options.add_argument("--scores", action="store_true", help="record the attention of every pass too, for the report's analysis")
    options.add_argument("--out", type=Path, help="keep the run here: FILE.html is a page that plays offline, FILE.json the trace")
    chosen = options.parse_args(argv)
    if chosen.out is not None and chosen.out.suffix not in (".html", ".json"):
        raise ValueError(f"--out {chosen.out} has no known ending: use .html for a page that plays offline or .json for the trace")
    trace = run(chosen, scores=chosen.scores)
    print(table(trace))
    if chosen.out is not None:
        write(trace, chosen.out)
        print(f"\n{'report' if chosen.out.suffix == '.html' else 'trace'} written to {chosen.out}")
    return 1 if trace.of(Error) else 0


def run(chosen: argparse.Namespace, scores: bool = False) -> Trace:
    """Run what the options of :func:`parser` ask for, shown live where there is a terminal; the trace holds the pictures."""
    others: dict[str, Policy] = {"full": Full(), "h2o": H2O(), "fastv": FastV(), "streaming-llm": StreamingLLM()}
    policies = [others[chosen.against], AVL(S=chosen.S, C=chosen.C, K=chosen.K, P=chosen.P, T=chosen.T)]
    pictures = [open_image(path) for path in chosen.image]
    model, processor = load(chosen.model, device=chosen.device, dtype=chosen.dtype, revision=chosen.revision)
    trace = Trace(images=[data_uri(picture) for picture in pictures])
    events = race(
        model,
        processor,
        pictures,
        chosen.question,
        policies,
        max_new_tokens=chosen.max_new_tokens,
        mode=chosen.mode,
        batch=chosen.batch,
        temperature=chosen.temperature,
        seed=chosen.seed,
        repeats=chosen.repeats,
        scores=scores,
    )
    console = Console(stderr=True)
    board = _Board(policies, chosen.max_new_tokens)
    with Live(board, console=console, transient=True, refresh_per_second=8, auto_refresh=console.is_terminal):
        for event in events:
            trace.append(event)
            board.show(trace, event)
    for error in trace.of(Error):
        print(f"compare: {error.message}", file=sys.stderr)
    return trace


class _Board:
    """The live view: both answers side by side, a line of figures and a progress bar for each arm."""

    def __init__(self, policies: Sequence[Policy], limit: int) -> None:
        self._labels = [policy.label for policy in policies]
        self._texts = ["" for _ in policies]
        self._figures: list[list[str]] = [["–"] * 4 for _ in policies]
        self._times: list[list[float]] = [[] for _ in policies]
        self._more = ""
        self._progress = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
        self._bars = [self._progress.add_task(policy.label, total=limit) for policy in policies]

    def show(self, trace: Trace, event: object) -> None:
        """Take one event in."""
        if isinstance(event, Prefill | Step):
            arm, rows = event.arm, trace.start.batch
            self._texts[arm] += event.text
            self._progress.advance(self._bars[arm])
            if isinstance(event, Prefill):
                self._figures[arm] = [f"{event.ms:.0f} ms", "–", _mib(event.stored_bytes), "–"]
            else:
                self._times[arm].append(event.ms)
                middle = statistics.median(self._times[arm])
                rate = f"{middle:.2f} ms, {1000 * rows / middle:.0f}/s"
                self._figures[arm][1:] = [rate, _mib(event.stored_bytes), _mib(event.read_bytes)]
        elif isinstance(event, End):
            self._progress.update(self._bars[event.arm], total=self._progress.tasks[event.arm].completed)
        elif isinstance(event, Repeat):
            self._more = f"run {event.number + 1} done"
        elif isinstance(event, Scores):
            self._more = f"attention recorded up to token {event.t + 1}"
        elif isinstance(event, Start):
            self._more = f"{event.n_image} image tokens, {event.n_text} text tokens"

    def __rich__(self) -> Group:
        answers, figures = Table(expand=True, show_lines=False), Table(expand=False)
        for label in self._labels:
            answers.add_column(Text(label), ratio=1)
        answers.add_row(*(Text(text.strip() or "…") for text in self._texts))
        for title in ("", "first token", "per token", "KV stored", "KV read"):
            figures.add_column(title, justify="right" if title else "left")
        for label, row in zip(self._labels, self._figures, strict=True):
            figures.add_row(Text(label), *row)
        return Group(answers, figures, self._progress, Text(self._more, style="dim"))


def _mib(count: float) -> str:
    return f"{count / 2**20:.2f} MiB"


def table(trace: Trace) -> str:
    """Both answers, then one line per arm: first token, median step (with its spread), rate, KV stored and read (mean over the steps)."""
    start, ends = trace.start, {end.arm: end for end in trace.of(End)}
    hardware = start.machine["gpu"] or start.machine["cpu"]
    batch = f" · batch {start.batch}" if start.batch > 1 else ""
    lines = [f"{start.model['name']} · {start.model['dtype']} · {hardware} · {start.n_image} image tokens{batch}", ""]
    for number, end in sorted(ends.items()):
        lines += [f"{start.arms[number].label}:", f"  {end.text}", ""]
    lines.append(f"{'':<34}{'first token':>12}{'ms/token':>10}{'tokens/s':>10}{'KV stored':>12}{'KV read':>12}")
    for number, end in sorted(ends.items()):
        times = sorted(ms for ms in (end.median_ms, *(event.median_ms for event in trace.of(Repeat, number))) if ms)
        middle = statistics.median(times) if times else None
        rate = f"{1000 * start.batch / middle:.1f}" if middle else "–"
        step = f"{middle:.2f}" if middle else "–"
        lines.append(
            f"{start.arms[number].label:<34}{end.ttft_ms:>9.0f} ms{step:>10}{rate:>10}"
            f"{end.stored_bytes / 2**20:>8.2f} MiB{end.read_bytes / 2**20:>8.2f} MiB"
        )
        if len(times) > 1:
            lines.append(f"{'':<34}{'':>12}{f'({times[0]:.2f} to {times[-1]:.2f}, {len(times)} runs)':>32}")
    return "\n".join(lines)


def write(trace: Trace, path: Path) -> None:
    """Keep a run: ``.html`` as a page of its own, anything else as JSON."""
    if path.suffix == ".html":
        from avl.ui import report  # the page's libraries are needed for nothing else here

        path.write_text(report.page(trace), encoding="utf-8")
    else:
        path.write_text(trace.to_json(), encoding="utf-8")
