"""A finished run as tables: answers and measurements, and the agreement with full attention."""

from __future__ import annotations

import io
import shutil
import statistics
from collections.abc import Iterable

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from avl.evaluation.figures.summary import divergence
from avl.trace import Agreement, End, Prefill, Repeat, Trace, Warning

WIDTH = 120
"""Columns where the terminal does not say how many it has."""
LEAST_TEXT = 20
"""Columns of a text, at least."""
MOST_PLACES = 12
"""Places where an arm's likeliest token is another one that are listed."""


def comparison(trace: Trace) -> str:
    """Return one row per arm: its answer, how much of it is full attention's, KV stored and read (means over the steps), times."""
    start, ends = trace.start, {end.arm: end for end in trace.of(End)}
    hardware = start.machine["gpu"] or start.machine["cpu"]
    batch = f" · batch {start.batch}" if start.batch > 1 else ""
    times = {arm: _times(trace, end) for arm, end in ends.items()}
    runs = max((len(some) for some in times.values()), default=1)
    columns = ["policy", "answer", "same as full", "KV stored", "KV read", "first token", "ms/token"]
    table = _table([*columns, *(["tokens/s"] if start.batch > 1 else [])], left=2)
    full = next((arm for arm, end in sorted(ends.items()) if start.arms[arm].policy["name"] == "Full"), None)
    for arm, end in sorted(ends.items()):
        middle = statistics.median(times[arm]) if times[arm] else None
        step = f"{middle:.2f}" if middle else "–"
        if len(times[arm]) > 1:
            step += f" ({min(times[arm]):.2f} to {max(times[arm]):.2f})"
        stored, read = (_bytes(value, None if full is None else ends[full].stored_bytes) for value in (end.stored_bytes, end.read_bytes))
        row = [start.arms[arm].label, end.text.strip(), _same(trace, arm, full), stored, read, f"{end.ttft_ms:.0f} ms", step]
        if start.batch > 1:
            row.append(f"{1000 * start.batch / middle:.1f}" if middle else "–")
        table.add_row(*map(Text, row))
    head = f"{start.model['name']} · {start.model['dtype']} · {hardware} · {start.n_image} image tokens{batch}"
    repeated = f" · median of {runs} runs (range)" if runs > 1 else ""
    return f"{head}{repeated}\n\n{_drawn(table)}"


def turn(trace: Trace) -> str:
    """Return one turn of a conversation, one row per arm: its answer, the tokens that its first pass fed, time and KV after that pass.

    A kept row says whether its answer is that of the same policy with the pictures read again.
    """
    start, ends, first = trace.start, {end.arm: end for end in trace.of(End)}, {one.arm: one for one in trace.of(Prefill)}
    again = {arm.label.removesuffix(" re-read"): number for number, arm in enumerate(start.arms) if arm.reread}
    table = _table(["policy", "answer", "tokens fed", "first token", "KV stored", *(["same as re-read"] if again else [])], left=2)
    for number, arm in enumerate(start.arms):
        end, began = ends.get(number), first.get(number)
        fed = arm.new_tokens or start.n_image + start.n_text
        full = start.token_bytes * (start.n_image + start.text_tokens(number))
        row = [arm.label, end.text.strip() if end else "–", str(fed), f"{began.ms:.0f} ms" if began else "–"]
        row.append(_bytes(began.stored_bytes, full) if began else "–")
        if again:
            other = None if arm.reread else ends.get(again.get(arm.label, -1))
            row.append("–" if other is None or end is None else "yes" if other.tokens == end.tokens else "no")
        table.add_row(*map(Text, row))
    notes = [f"{start.arms[one.arm].label}: {one.message}" if one.arm is not None else one.message for one in trace.of(Warning)]
    return "\n".join([f"Question {start.turn}: {start.question}", "", _drawn(table), *notes])


def agreement(trace: Trace) -> str:
    """Return how far each arm agrees with full attention on full attention's answer, and where its likeliest token is another one."""
    events: list[Agreement] = trace.of(Agreement)
    if not events:
        return ""
    labels = [arm.label for arm in trace.start.arms]
    table = _table(["policy", "same likeliest token", "mean KL, nats", "perplexity of full's answer"], left=1)
    for event in events:
        row = [labels[event.arm], f"{event.share:.1%}", f"{event.mean_kl:.4f}", f"{event.perplexity:.3f}"]
        table.add_row(*map(Text, row))
    one = events[0]
    head = f"Full attention's answer, {len(one.tokens)} tokens, fed through each policy; its perplexity under full attention is "
    lines = [f"{head}{one.full_perplexity:.3f}", "", _drawn(table)]
    for event in events:
        places = [t for t, token in enumerate(event.top) if token is not None]
        if places:
            lines += ["", f"{labels[event.arm]} would have gone on otherwise at {len(places)} of {len(event.tokens)} tokens:"]
            lines += [
                f"  token {t + 1:>4}: {event.top_texts[t]!r} for {event.texts[t]!r}, KL {event.kl[t]:g}" for t in places[:MOST_PLACES]
            ]
            lines += [f"  and at {len(places) - MOST_PLACES} more"] if len(places) > MOST_PLACES else []
    return "\n".join(lines)


def _times(trace: Trace, end: End) -> list[float]:
    """Return the median step of every run of an arm, in ms."""
    return [ms for ms in (end.median_ms, *(event.median_ms for event in trace.of(Repeat, end.arm))) if ms]


def _same(trace: Trace, arm: int, full: int | None) -> str:
    """Return whether an arm's answer is full attention's, or up to where."""
    if full is None or arm == full:
        return "–"
    parted = divergence(trace, (full, arm))
    return "yes" if parted.same else f"first {parted.common} tokens"


def _bytes(count: float, full: float | None) -> str:
    return f"{count / 2**20:.2f} MiB" + (f", {count / full:.0%}" if full else "")


def _table(columns: Iterable[str], left: int) -> Table:
    """Return a table whose first ``left`` columns hold text, which wraps, and the others numbers, which do not."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, column in enumerate(columns):
        if number < left:
            table.add_column(column, overflow="fold", min_width=LEAST_TEXT)
        else:
            table.add_column(column, justify="right", no_wrap=True)
    return table


def _drawn(table: Table) -> str:
    """Return a table as wide as the terminal, or as its numbers need."""
    out = io.StringIO()
    # left to itself, rich cuts what does not wrap
    least = sum(
        max(cell_len(str(cell)) for cell in (column.header, *column.cells)) if column.no_wrap else LEAST_TEXT for column in table.columns
    )
    width = max(shutil.get_terminal_size((WIDTH, 24)).columns, least + 3 * len(table.columns))
    Console(file=out, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())
