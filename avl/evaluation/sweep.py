"""`python -m avl sweep`: answers against memory. A-VL's S from 100 down to 5, the other policies at the memory that it then uses."""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

import avl
from avl.evaluation.evaluate import Result, at_equal_memory, evaluate, text_tokens
from avl.evaluation.tasks import TASKS, held_out
from avl.models.families import describe, family_of
from avl.telemetry import machine_card
from avl.tiny.data.drawing import FONT_FOLDER

SHARES = (100, 80, 60, 45, 30, 20, 10, 5)
COLOURS = {"AVL": (208, 62, 42), "H2O": (38, 92, 180), "FastV": (58, 140, 80), "StreamingLLM": (140, 104, 170)}
TITLES = {"qa": "short answers", "read": "reading (ANLS)", "describe": "descriptions (facts right)"}


def sweep(model, processor, samples, shares: Sequence[float], others: Sequence[str], batch: int = 16) -> dict[str, list[Result]]:
    """Evaluate A-VL with C = 2/3 S, K=3 at each S, and the other policies at the share of the cache that A-VL stored there.

    Returns:
        policy name -> one result for each share that it could be set to.
    """
    full = evaluate(model, processor, samples, avl.Full(), batch=batch)
    out: dict[str, list[Result]] = {"Full": [full], "AVL": [], **{name: [] for name in others}}
    text, layers = text_tokens(processor, samples), describe(model).layers
    image = family_of(model.config).image_tokens(model.config, samples[0].image.size)
    for share in shares:
        core = None if share == 100 else round(share * 2 / 3, 2)
        result = evaluate(model, processor, samples, avl.AVL(S=share, C=core, K=3), full, batch)
        out["AVL"].append(result)
        _say("AVL", result)
        for name in others:
            for policy in at_equal_memory(min(result.stored, 1.0), text, image, layers, [name]):
                out[name].append(evaluate(model, processor, samples, policy, full, batch))
                _say(name, out[name][-1])
    return out


def _say(name: str, result: Result) -> None:
    scores = "  ".join(f"{task} {value:6.1%}" for task, value in result.scores.items())
    print(f"{name:13} stored {result.stored:6.1%} read {result.read:6.1%}  {scores}", flush=True)


def plot(results: dict[str, list[Result]], path: Path) -> None:
    """Draw one panel a task, share of the full cache stored against score, as a PNG of 1320 x 440 pixels."""
    scale = 2
    image = Image.new("RGB", (1320 * scale, 440 * scale), "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.truetype(str(FONT_FOLDER / "DejaVuSansCondensed-Bold.ttf"), 15 * scale)
    ink, pale = (60, 60, 66), (226, 226, 230)
    for number, task in enumerate(TASKS):
        left, top, width, height = (60 + number * 430) * scale, 56 * scale, 350 * scale, 296 * scale
        pen.text((left, top - 38 * scale), TITLES[task], font=font, fill=ink)
        for tick in range(0, 101, 20):
            y = top + height - height * tick / 100
            pen.line((left, y, left + width, y), fill=pale, width=scale)
            pen.text((left - 8 * scale, y), str(tick), font=font, fill=ink, anchor="rm")
            x = left + width * tick / 100
            pen.text((x, top + height + 8 * scale), str(tick), font=font, fill=ink, anchor="mt")
        base = top + height - height * results["Full"][0].scores.get(task, 0.0)
        for x in range(int(left), int(left + width), 12 * scale):
            pen.line((x, base, x + 6 * scale, base), fill=ink, width=scale)
        for name, colour in COLOURS.items():
            points = [(left + width * r.stored, top + height - height * r.scores[task]) for r in results.get(name, []) if task in r.scores]
            if len(points) > 1:
                pen.line(points, fill=colour, width=3 * scale, joint="curve")
            for x, y in points:
                pen.ellipse((x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale), fill=colour)
    x = 60.0 * scale
    for name, colour in {"full attention": ink, **{n.replace("AVL", "A-VL"): c for n, c in COLOURS.items() if results.get(n)}}.items():
        pen.line((x, 408 * scale, x + 26 * scale, 408 * scale), fill=colour, width=3 * scale)
        pen.text((x + 34 * scale, 408 * scale), name, font=font, fill=ink, anchor="lm")
        x += 50 * scale + pen.textlength(name, font=font)
    pen.text((1300 * scale, 408 * scale), "score in % against stored share of the full cache in %", font=font, fill=ink, anchor="rm")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.reduce(scale).quantize(64).save(path, optimize=True)


def main(argv: list[str] | None = None) -> int:
    """`python -m avl sweep`: writes OUT/sweep.json and OUT/sweep.png, one JSON line last."""
    parser = argparse.ArgumentParser(prog="avl sweep", description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shares", type=float, nargs="*", default=list(SHARES), help="values of S, in percent")
    parser.add_argument("--others", nargs="*", default=["H2O", "FastV", "StreamingLLM"], choices=["H2O", "FastV", "StreamingLLM"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("assets/bench"))
    args = parser.parse_args(argv)
    model, processor = avl.load(args.model, device=args.device)
    avl.attach(model)
    results = sweep(model, processor, held_out(args.samples, args.seed), args.shares, args.others, args.batch)
    record: dict[str, Any] = {"date": datetime.date.today().isoformat(), "machine": machine_card()}
    record |= {"model": args.model, "samples": args.samples, "seed": args.seed, "shares": args.shares}
    record["results"] = {name: [asdict(r) for r in rows] for name, rows in results.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "sweep.json").write_text(json.dumps(record, indent=1) + "\n")
    plot(results, args.out / "sweep.png")
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
