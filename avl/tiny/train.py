"""The whole recipe: `python -m avl train-tiny`. Stage 1 is the vision tower, stage 2 the language model; then the export."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from . import model as sizes
from . import packing, vision
from .export import assemble, export
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


def train_vision(
    folder: Path, minutes: float, whole_share: float, log: Log, batch: int = 48, peak: float = 1.5e-3, device: str = "cpu"
) -> None:
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
        if step % 100 == 0:
            means = {k: sum(v) / len(v) for k, v in seen.items()}
            log(stage="vision", step=step, samples=samples, minutes=elapsed / 60, whole=bool(whole), norm=norm, **means)
            seen = {}
        if time.monotonic() - last > 90 or elapsed >= minutes * 60:
            last = time.monotonic()
            weights = {k: v.float() for k, v in tower.state_dict().items()}
            save(path, tower=weights, heads=heads.state_dict(), optimizer=optimizer.state(), step=step, samples=samples, elapsed=elapsed)


def train_language(folder: Path, minutes: float, log: Log, batch: int = 4, peak: float = 1.2e-3, device: str = "cpu") -> None:
    """Stage 2: projector and language model, and in its second half every third batch the tower. Reads `vision.pt`, resumes `language.pt`.

    The tower goes on at a quarter of the rate, from the language model's loss and its own heads' together.

    How many image tokens a batch keeps is drawn at random, few in the beginning, up to all of them in the end. In the last third, half of
    the batches also hide a random part of them in each layer, another one in every layer, and forget a random part of the text that is
    long past.

    Args:
        folder: of the checkpoints.
        minutes: of training, earlier runs included.
        log: where progress goes.
        batch: pictures in a batch, each with about ten questions; fewer when more image tokens are kept.
        peak: the highest learning rate.
        device: "cpu" or "cuda".
    """
    llava, processor = assemble(folder)
    packer = packing.Packer(processor.tokenizer)
    tower = sizes.tower(llava)
    tower.load_state_dict(torch.load(folder / "vision.pt", map_location="cpu")["tower"])
    llava.to(torch.device(device))  # type: ignore[arg-type]
    heads = vision.Heads(sizes.VISION_WIDTH).to(device)
    heads.load_state_dict(torch.load(folder / "vision.pt", map_location="cpu")["heads"])
    tower.post_layernorm.requires_grad_(False)
    optimizer = Optimizer([llava.model.multi_modal_projector, llava.model.language_model, llava.lm_head], peak, slow=[tower, heads])
    step, samples, elapsed = 0, 0, 0.0
    path = folder / "language.pt"
    if path.exists():
        old = torch.load(path, map_location=device)
        optimizer.load(old["optimizer"])
        step, samples, elapsed = old["step"], old["samples"], old["elapsed"]
    lessons = packing.Lessons(packer, batch, start=step)
    source = iter(torch.utils.data.DataLoader(lessons, batch_size=None, num_workers=1, prefetch_factor=4))
    everywhere = torch.arange(sizes.IMAGE_TOKENS, device=device)
    began = last = time.monotonic()
    start, seen = elapsed, []
    patches: dict[str, list[float]] = {}
    while elapsed < minutes * 60:
        done = elapsed / (minutes * 60)
        chance = torch.Generator().manual_seed(step)
        share = image_share(done, chance)
        packed = next(source)
        marks = {k: v.to(device) for k, v in packed.marks.items()}
        rest = (packed.ids, packed.block, packed.place, packed.target)
        packed = packing.Packed(packed.images.to(device), marks, *(t.to(device) for t in rest))
        both = done > 0.5 and step % 3 == 0
        with torch.set_grad_enabled(both):
            places = everywhere.expand(len(packed.images), -1)
            features, local = vision.run_tower(tower, packed.images.to(torch.bfloat16), places)
        kept = packing.choose(chance, round(share * sizes.IMAGE_TOKENS)).to(device)
        hide = forget = None
        if done > 0.66 and torch.rand((), generator=chance) < 0.5:
            ratio = 0.7 * torch.rand((), generator=chance)
            hide = (torch.rand(sizes.TEXT_LAYERS, batch, len(kept), generator=chance) < ratio).to(device)
            forget = (torch.rand(packed.ids.shape, generator=chance) < 0.3 * torch.rand((), generator=chance)).to(device)
        loss, right = packing.language_loss(llava, packer, features[:, kept], kept, packed, hide, forget)
        total = loss
        if both:
            own, said = vision.loss_of(heads(features, local), marks)
            total = loss + 0.3 * own
            for name, value in said.items():
                patches.setdefault(name, []).append(value)
        total.backward()
        norm = optimizer.step(done)
        step, samples = step + 1, samples + batch
        elapsed = start + time.monotonic() - began
        seen.append((loss.item(), right.float().mean().item()))
        if step % 100 == 0:
            mean = [sum(column) / len(seen) for column in zip(*seen, strict=True)]
            said = {k: sum(v) / len(v) for k, v in patches.items()}
            log(stage="language", step=step, samples=samples, minutes=elapsed / 60, norm=norm, loss=mean[0], tokens_right=mean[1], **said)
            seen, patches = [], {}
        if time.monotonic() - last > 90 or elapsed >= minutes * 60:
            last = time.monotonic()
            weights = {k: v.float() for k, v in llava.state_dict().items()}
            save(path, model=weights, optimizer=optimizer.state(), step=step, samples=samples, elapsed=elapsed)


def image_share(done: float, chance: torch.Generator) -> float:
    """The share of image tokens that a batch keeps when the share `done` of stage 2 is over."""
    low, high = 0.2, 0.45 + 0.4 * done
    if done > 0.5 and torch.rand((), generator=chance) < 0.12 + 0.3 * max(0.0, done - 0.8):
        return 1.0
    return low + (high - low) * float(torch.rand((), generator=chance)) ** 1.5


def main(argv: list[str] | None = None) -> int:
    """`python -m avl train-tiny`: train, resume and export the bundled model."""
    parser = argparse.ArgumentParser(prog="avl train-tiny", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/tiny"), help="checkpoints and logs; training goes on from them")
    parser.add_argument("--out", type=Path, default=None, help="model folder to write; nothing is exported without it")
    parser.add_argument("--vision-minutes", type=float, default=30, help="stage 1")
    parser.add_argument("--whole-share", type=float, default=0.25, help="part of stage 1 that sees whole scenes")
    parser.add_argument("--language-minutes", type=float, default=50, help="stage 2")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--fresh", action="store_true", help="start again instead of going on")
    args = parser.parse_args(argv)
    args.runs.mkdir(parents=True, exist_ok=True)
    if args.fresh:
        for name in ("vision.pt", "language.pt", "log.jsonl"):
            (args.runs / name).unlink(missing_ok=True)
    log = Log(args.runs / "log.jsonl")
    train_vision(args.runs, args.vision_minutes, args.whole_share, log, device=args.device)
    train_language(args.runs, args.language_minutes, log, device=args.device)
    if args.out:
        export(args.runs, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
