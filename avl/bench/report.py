"""What a benchmark result says: text, Markdown tables, the README's table. Reads the result's JSON and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Result = dict[str, Any]

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
"""The README's performance table stands between these two lines."""


def machine(result: Result) -> str:
    """Hardware and versions in one line."""
    card = result["machine"]
    what = card["gpu"] or f"{card['cpu']}, {card['threads']} of {card['cores']} threads"
    versions = [f"{name} {card[name]}" for name in ("torch", "transformers", "triton", "cuda") if card.get(name)]
    return ", ".join([what, f"Python {card['python']}", *versions])


def subject(result: Result) -> str:
    """Model, dtype and prompt in one line."""
    model, request = result["model"], result["request"]
    weights = "" if model["weights"] == "loaded" else f" ({model['weights']} weights)"
    return (
        f"{model['name']}{weights}, {model['dtype']} on {model['device']}, {request['n_image']} image + {request['n_text']} text tokens, "
        f"{request['new_tokens']} new tokens"
    )


def steps(result: Result) -> str:
    """How decode steps were run."""
    return "CUDA graphs" if result.get("decode") == "graphs" else "eager"


def title(result: Result, arm: str) -> str:
    """Return a policy's name for people."""
    names = {"full": "full attention", "evict": "evict only", "avl": "A-VL", "prune": "A-VL, pruned prompt"}
    return names.get(arm) or result["arms"][arm]["label"]


def amount(size: float | None) -> str:
    """Bytes for people, decimal units."""
    if size is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size / 1e3:.1f} kB"


def number(value: float | None) -> str:
    """Three significant digits or so."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def header(result: Result) -> str:
    """Return what it runs on, what is measured, and the roofline card."""
    measured, roofline = result["bandwidth"], result["roofline"]
    lines = [
        machine(result),
        subject(result) + f"; decode attention: {result['implementation']}; steps: {steps(result)}"
        f"; layers: {result.get('layers', 'the model')}",
        f"bandwidth of this run in GB/s: copy {measured['copy']:.1f}, triad {measured['triad']:.1f}, read {measured['read']:.1f}; "
        f"matrix product {measured['tflops']:.2f} TFLOP/s",
        f"roofline at copy bandwidth: a step reads {amount(roofline['weight_bytes'])} of weights, and per row",
    ]
    for arm, facts in roofline["arms"].items():
        floors = ", ".join(f"{floor:.3f} ms at batch {batch}" for batch, floor in facts["floor_ms"].items())
        lines.append(
            f"  {title(result, arm):20} {result['arms'][arm]['label']}: KV stored {amount(facts['stored_bytes'])}, "
            f"read {amount(facts['read_bytes'])}; floor {floors}"
        )
    if result["evidence"] != "gpu":
        lines.append("No GPU: a CPU's caches hold part of a small model, so a share of the floor can exceed 100 %.")
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    rule = ["---"] * left + ["--:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def _quartiles(spread: dict[str, Any] | None) -> str:
    return "" if spread is None else f"{spread['median']:.2f} ({spread['q1']:.2f}–{spread['q3']:.2f})"


def tables(result: Result) -> str:
    """Everything measured, as Markdown."""
    head = ["batch", "policy", "first token ms", "ms per token", "p99 of a step", "tokens/s", "times faster (quartiles)"]
    head += ["floor ms", "share of floor", "KV stored", "KV read per step", "KV peak", "torch peak"]
    rows = [
        [
            str(row["batch"]), title(result, row["arm"]), number(row["ttft_ms"]["median"]), number(row["tpot_ms"]["median"]),
            number(row["step_p99_ms"]), number(row["tokens_per_s"]), _quartiles(row["ratio"]), number(row["floor_ms"]),
            f"{row['floor_share']:.0%}", amount(row["stored_bytes"]), amount(row["read_bytes"]), amount(row["kv_peak_bytes"]),
            amount(row["torch_peak_bytes"]),
        ]
        for row in result["rows"]
    ]  # fmt: skip
    parts = [f"**{subject(result)}.** {machine(result)}; medians of {result['repeats']} runs, the arms alternating; {result['date'][:10]}."]
    parts.append(_table(head, rows, 2))
    if result.get("decode") == "graphs":
        took = ", ".join(f"{title(result, row['arm'])} {row['prepare_ms']['median']:.0f}" for row in result["rows"])
        how = "warmed up once per shape and captured for every answer, in no step's time"
        parts.append(f"Decode steps are CUDA graphs, {how}. It took ms: {took}.")
    kinds = [
        [str(row["batch"]), title(result, row["arm"]), number(row["core_ms"]["median"]), number(row["core_floor_ms"]),
         number(row["update_ms"]["median"]), number(row["update_floor_ms"])]
        for row in result["rows"] if "core_ms" in row and "update_ms" in row
    ]  # fmt: skip
    if kinds:
        parts.append(_table(["batch", "policy", "core step ms", "its floor", "update step ms", "its floor"], kinds, 2))
    if result["references"]:
        ours = {row["batch"]: row["tpot_ms"]["median"] for row in result["rows"] if row["arm"] == "avl"}
        found = []
        for entry in result["references"]:
            if entry["tpot_ms"] is None:
                found.append([str(entry["batch"]), entry["name"], "–", "–", entry["note"]])
                continue
            ms = entry["tpot_ms"]["median"]
            over = f"{ms / ours[entry['batch']]:.2f}" if entry["batch"] in ours else "–"
            found.append([str(entry["batch"]), entry["name"], number(entry["ttft_ms"]["median"]), number(ms), over])
        parts.append("Outside references, full attention by transformers' own code; no ratio above rests on them:")
        parts.append(_table(["batch", "reference", "first token ms", "ms per token", "over our A-VL"], found, 2))
    if result["largest"]:
        sizes = [
            [title(result, arm), str(entry["predicted"]), number_or_dash(entry["confirmed"]), number(entry["tokens_per_s"])]
            for arm, entry in result["largest"].items()
        ]
        parts.append(_table(["largest batch that fits", "predicted", "found by trying", "tokens/s there"], sizes, 1))
    return "\n\n".join([*parts, "\n".join(f"* {line}" for line in sentences(result))])


def number_or_dash(count: int | None) -> str:
    """Format a whole number, or a dash where there is none."""
    return "–" if count is None else str(count)


def sentences(result: Result) -> list[str]:
    """Return what the numbers mean, the cells where a policy does not pay first."""
    lines = []
    for row in result["rows"]:
        ratio = row["ratio"]
        if ratio is None:
            continue
        where = f"{title(result, row['arm'])} at batch {row['batch']}"
        base = title(result, ratio["to"])
        if ratio["median"] < 1:
            verdict = f"{where} does not pay: a token takes {1 / ratio['median']:.2f} times as long as with {base}"
        elif ratio["q1"] <= 1 <= ratio["q3"]:
            verdict = f"{where} takes about as long as {base} ({ratio['median']:.2f} times faster, within the spread of the runs)"
        else:
            continue
        lines.append(f"{verdict}; by bytes it could be {row['floor_ratio']:.2f} times faster.")
    lines += [f"Batch {gap['batch']}, {title(result, gap['arm'])}: skipped, {gap['reason']}." for gap in result["skipped"]]
    if not result.get("finished", True):
        lines.append("The run ended before all was measured.")
    if result["evidence"] != "gpu":
        lines.append("Measured on a CPU: these times say nothing about a GPU.")
    return lines


def whole(result: Result) -> str:
    """Return all tables of a result of ``avl bench``, of either kind."""
    return widths(result) if result.get("schema") == "avl.widths/1" else tables(result)


def widths(result: Result) -> str:
    """Return what ``avl bench --width-of`` measured (avl/bench/widths.py)."""
    model = result["model"]
    rows = [
        "| image tokens | rows | threads | full ms | evict only | by bytes | A-VL | by bytes | of that |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for cell in result["cells"]:
        full, evict, avl = (cell["arms"][key] for key in ("full", "evict", "avl"))
        reached = 100 * avl["ratio"]["median"] / avl["predicted"]
        rows.append(
            f"| {cell['n_image']} | {cell['batch']} | {cell['threads']} | {full['ms']['median']:.1f} | {_quartiles(evict['ratio'])} | "
            f"{evict['predicted']:.2f} | {_quartiles(avl['ratio'])} | {avl['predicted']:.2f} | {reached:.0f} % |"
        )
    for found in result["references"]:
        if found["tpot_ms"] is not None:
            time_ms = found["tpot_ms"]["median"]
            cell = f"| {found['n_image']} | {found['batch']} | {found['threads']} | {time_ms:.1f} |"
            rows.append(f"{cell} transformers' generate, DynamicCache | | | | |")
    heading = (
        f"**{model['layers']} of the layers of {model['name']}, random weights, {model['dtype']}; "
        f"{result['rounds']} rounds of {result['steps_per_round']} steps, the arms in turns.** {machine(result)}; {result['date'][:10]}. "
        "Times faster than full attention (quartiles), beside what the bytes moved allow at the rates of the same run."
    )
    return "\n".join([heading, "", *rows])


def render(readme: str, results: Sequence[Result]) -> str:
    """Return the README with the tables of ``results`` between its two markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    start, stop = readme.find(BEGIN), readme.find(END)
    if start < 0 or stop < start or readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"the README needs the lines {BEGIN} and {END} once each, in this order")
    body = "\n\n".join(whole(result) for result in results)
    return f"{readme[:start]}{BEGIN}\n\n{body}\n\n{readme[stop:]}"
