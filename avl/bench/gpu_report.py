"""What a machine's check found, as Markdown. Reads the parts' JSON and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avl.bench.report import amount, number
from avl.bench.targets import ENGINES, Results


def text(summary: dict[str, Any], found: Results) -> str:
    """Return everything: the machine, the parts, their tables, the targets, and last what missed them.

    Args:
        summary: from ``gpu_check.summarize``.
        found: part -> what is in its file.
    """
    card = summary["machine"] or {}
    versions = [f"{name} {card[name]}" for name in ("torch", "transformers", "triton", "cuda") if card.get(name)]
    parts = [f"**{', '.join([card.get('gpu') or card.get('cpu') or 'machine not known yet', *versions])}**, {summary['date'][:10]}"]
    if summary["evidence"] == "cpu":
        parts.append("No GPU: everything in miniature on a CPU. These numbers show that the check runs, and nothing else.")
    rows = [
        [one["title"], one["state"] or "not run", _seconds(one["seconds"]), _seconds(one["limit_s"]), one["why"] or ""]
        for one in summary["parts"]
    ]
    parts.append(_table(["part", "ended", "s", "of", "why"], rows))
    parts += [block for block in (_checks(found), _bandwidth(found), _kernels(found), _engines(found), _outside(found)) if block]
    rows = [
        [row["key"], row["what"], row["where"], row["goal"], number(row["value"]), {True: "met", False: "**missed**"}.get(row["met"], "–")]
        for row in summary["targets"]
    ]
    parts.append(_table(["target", "quantity", "where", "goal", "measured", ""], rows))
    parts.append(_verdict(summary))
    return "\n\n".join(parts)


def _verdict(summary: dict[str, Any]) -> str:
    judged = [row for row in summary["targets"] if row["met"] is not None]
    missing = sorted({row["key"] for row in summary["targets"] if row["value"] is None})
    lines = [f"{len(judged) - len(summary['missed'])} of {len(judged)} measured goals are met."]
    if summary["evidence"] != "gpu":
        lines = ["No goal is judged without a GPU."]
    if missing:
        lines.append(f"Not measured: {', '.join(missing)}.")
    if summary["missed"]:
        lines.append("Missed:\n\n" + "\n".join(f"* {what}" for what in summary["missed"]))
    return " ".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "/") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _checks(found: Results) -> str:
    lines = [f"* {line}" for line in found.get("doctor", {}).get("lines", []) if line.startswith("missing")]
    for row in found.get("self-check", {}).get("rows", []):
        lines.append(f"* kernels, {row['dtype']}, head size {row['head_size']}: {row['trouble'] or 'right'} ({row['seconds']:.1f} s)")
    tests = found.get("tests", {})
    if "counts" in tests:
        lines.append(f"* kernel tests: {', '.join(f'{count} {kind}' for kind, count in tests['counts'].items())}")
        lines += [f"  * {name}" for name in tests["failures"]]
    return "\n".join(lines)


def _bandwidth(found: Results) -> str:
    rates = found.get("bandwidth", {}).get("gb_s", {})
    return "" if not rates else "Bandwidth in GB/s: " + ", ".join(f"{name} {value:.1f}" for name, value in rates.items()) + "."


def _kernels(found: Results) -> str:
    blocks = []
    for facts in (found.get(part, {}) for part in ("kernels", "sm_75")):
        for cell in facts.get("cells", []):
            rows = [
                [row["name"], number(row["us"]), number(row["gb_s"]), f"{row['gb_s'] / cell['copy_gb_s']:.2f}"]
                if row["us"] is not None
                else [row["name"], "–", row["note"], ""]
                for row in cell["rows"]
            ]
            wrong = f" {cell['error']}" if "error" in cell else ""
            blocks.append(f"One layer of {cell['shape']}, batch {cell['batch']}:{wrong}\n\n" + _table(["", "us", "GB/s", "of copy"], rows))
            for row in cell["layer_rows"]:
                times = row["note"] if row["us"] is None else f"{number(row['us'])} us, in torch's own operations {number(row['torch_us'])}"
                blocks.append(f"* {row['name']}: {times}")
        blocks += [f"{name}: {state}." for name, state in facts.get("peers", {}).items()]
    return "\n\n".join(blocks)


def _engines(found: Results) -> str:
    blocks = []
    for facts in (found[part] for part in ENGINES if "model" in found.get(part, {})):
        head = ["batch", "policy", "ms per token", "times faster", "share of floor", "core step ms", "update step ms", "first token ms"]
        head += ["KV peak", "torch peak"]
        rows = [
            [
                str(row["batch"]), row["arm"], number(row["tpot_ms"]["median"]), number(row["ratio"] and row["ratio"]["median"]),
                f"{row['floor_share']:.2f}", *(number(row[key]["median"] if key in row else None) for key in ("core_ms", "update_ms")),
                number(row["ttft_ms"]["median"]), amount(row["kv_peak_bytes"]), amount(row["torch_peak_bytes"]),
            ]
            for row in facts.get("rows", [])
        ]  # fmt: skip
        how = f"{facts['implementation']} attention, layers {facts['layers']}, steps {facts['decode']}"
        how += f"; the Triton kernels are not used: {facts['kernel_trouble']}" if facts["kernel_trouble"] else ""
        blocks.append(f"{facts['model']}, {facts['weights']} weights, {facts['dtype']}; {how}:\n\n" + _table(head, rows))
        lines = [f"batch {gap['batch']}, {gap['arm']}: skipped, {gap['reason']}" for gap in facts.get("skipped", [])]
        lines += [f"batch {one['batch']}: {one['error']}" for one in facts.get("troubles", [])]
        for arm, size in facts.get("largest", {}).items():
            tried = (
                "not tried" if size["confirmed"] is None else f"{size['confirmed']} found, {number(size['tokens_per_s'])} tokens/s there"
            )
            lines.append(f"most rows, {arm}: {size['predicted']} predicted, {tried}")
        blocks += ["\n".join(f"* {line}" for line in lines)] if lines else []
    return "\n\n".join(blocks)


def _outside(found: Results) -> str:
    facts = found.get("references", {})
    rows = [
        [str(one["batch"]), one["name"], number(one["ttft_ms"]["median"]), number(one["tpot_ms"]["median"])]
        if one["tpot_ms"]
        else [str(one["batch"]), one["name"], "–", one["note"]]
        for one in facts.get("entries", [])
    ]
    if not rows:
        return ""
    return f"Outside references, {facts['model']}, transformers' own code:\n\n" + _table(
        ["batch", "", "first token ms", "ms per token"], rows
    )
