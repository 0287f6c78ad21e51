"""The whole recipe: `python -m avl train-tiny`. Stage 1 is the vision tower, stage 2 the language model; then the export."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from . import model as sizes
from . import vision
from .optim import Optimizer


class Log:
    """Prints progress and appends it to a JSONL file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, **row: Any) -> None:
        row = {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}
        print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def save(path: Path, **parts: Any) -> None:
    """Write a checkpoint so that a reader never sees half of one."""
    part = path.with_suffix(".part")
    torch.save(parts, part)
    part.replace(path)


def train_vision(folder: Path, minutes: float, whole_share: float, log: Log, batch: int = 48, peak: float = 1.5e-3, device: str = "cpu") -> None:
    """Stage 1. Reads and writes `vision.pt` in the folder; goes on where an earlier run stopped.

    Args:
        folder: of the checkpoint.
        minutes: of training, earlier runs included.
        whole_share: the last part of the minutes, on whole scenes instead of windows.
        log: where progress goes.
        batch: windows in a batch; a batch of whole scenes holds a third as many.
        peak: the highest learning rate.
        device: "cpu" or "cuda".
    """
    llava = sizes.build(400, 3, 0, 1, 2)  # only the tower is used
    tower = sizes.tower(llava).to(device)
    heads = vision.Heads(sizes.VISION_WIDTH).to(device)
    tower.post_layernorm.requires_grad_(False)
    optimizer = Optimizer([tower, heads], peak)
    step, samples, elapsed = 0, 0, 0.0
    path = folder / "vision.pt"
    if path.exists():
        old = torch.load(path, map_location=device)
        optimizer.load(old["optimizer"])
        step, samples, elapsed = old["step"], old["samples"], old["elapsed"]
    whole: bool | None = None
    source: Any = None
    began = last = time.monotonic()
    seen: dict[str, list[float]] = {}
    start = elapsed
    while elapsed < minutes * 60:
        if whole is not (whole := elapsed > minutes * 60 * (1 - whole_share)):
            data = vision.Windows(batch // 3 if whole else batch, whole, start=step)
            source = iter(torch.utils.data.DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=6))
        images, places, marks = next(source)
        images, places = images.to(device, torch.bfloat16), places.to(device)
        marks = {k: v.to(device) for k, v in marks.items()}
        loss, right = vision.loss_of(heads(*vision.run_tower(tower, images, places)), marks)
        loss.backward()
        norm = optimizer.step(elapsed / (minutes * 60))
        step, samples = step + 1, samples + len(images)
        elapsed = start + time.monotonic() - began
        for name, value in (right | {"loss": loss.item()}).items():
            seen.setdefault(name, []).append(value)
        if step % 50 == 0:
            means = {k: sum(v) / len(v) for k, v in seen.items()}
            log(stage="vision", step=step, samples=samples, minutes=elapsed / 60, whole=bool(whole), norm=norm, **means)
            seen = {}
        if time.monotonic() - last > 90 or elapsed >= minutes * 60:
            last = time.monotonic()
            weights = {k: v.float() for k, v in tower.state_dict().items()}
            save(path, tower=weights, heads=heads.state_dict(), optimizer=optimizer.state(), step=step, samples=samples, elapsed=elapsed)


def main(argv: list[str] | None = None) -> int:
    """`python -m avl train-tiny`: train, resume and export the bundled model."""
    parser = argparse.ArgumentParser(prog="avl train-tiny", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/tiny"), help="folder of checkpoints and logs")
    parser.add_argument("--vision-minutes", type=float, default=32)
    parser.add_argument("--whole-share", type=float, default=0.3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args(argv)
    log = Log(args.runs / "log.jsonl")
    train_vision(args.runs, args.vision_minutes, args.whole_share, log, device=args.device)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
