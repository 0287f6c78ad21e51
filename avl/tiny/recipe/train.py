"""The whole recipe, ``avl train-tiny``: stage 1 trains the vision tower, stage 2 the language model; then the export."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from avl.tiny.recipe import model as sizes
from avl.tiny.recipe import packing, topics, vision
from avl.tiny.recipe.export import assemble, begin_with, export
from avl.tiny.recipe.optim import Optimizer, faster_dtype

HIDE_FROM = 0.1  # fraction of stage 2 after which tokens are hidden from some layers


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
    """Write a checkpoint atomically, so that no reader sees an incomplete one."""
    part = path.with_suffix(".part")
    torch.save(parts, part)
    part.replace(path)


def train_vision(
    folder: Path,
    minutes: float,
    whole_share: float,
    log: Log,
    first: dict[str, torch.Tensor] | None = None,
    batch: int = 24,
    peak: float = 1.2e-3,
    device: str = "cpu",
) -> None:
    """Run stage 1: train the vision tower; resumes from `vision.pt` in the folder and writes it.

    Args:
        folder: of the checkpoint.
        minutes: of training, including earlier runs.
        whole_share: final fraction of the minutes in which all patches of whole scenes are given.
        log: takes progress.
        first: initial weights of a whole model, of which the tower's are used.
        batch: pictures per batch; a third as many when all their patches are given.
        peak: highest learning rate.
        device: "cpu" or "cuda".
    """
    llava = sizes.build(400, 3, 0, 1, 2)  # only the tower is used
    tower = sizes.tower(llava).to(device)
    if first is not None:
        tower.load_state_dict(part_of(first, "vision_tower."))
    heads = vision.Heads(sizes.VISION_WIDTH).to(device)
    tower.post_layernorm.requires_grad_(False)
    dtype = faster_dtype(device)
    optimizer = Optimizer([tower, heads], peak, dtype)
    step, samples, elapsed = 0, 0, 0.0
    path = folder / "vision.pt"
    if path.exists():
        old = torch.load(path, map_location=device)
        optimizer.load(old["optimizer"])
        step, samples, elapsed = old["step"], old["samples"], old["elapsed"]
    log(stage="vision", dtype=str(dtype), threads=torch.get_num_threads(), minutes=elapsed / 60)
    whole: bool | None = None
    source: Any = None
    began = last = time.monotonic()
    seen: dict[str, list[float]] = {}
    start = elapsed
    while elapsed < minutes * 60:
        if whole is not (whole := elapsed > minutes * 60 * (1 - whole_share)):
            data = vision.Patches(batch // 3, vision.PATCHES, step) if whole else vision.Patches(batch, vision.GIVEN, step)
            source = iter(torch.utils.data.DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=6))
        patches, places, marks = next(source)
        marks = {k: v.to(device) for k, v in marks.items()}
        loss, right = vision.loss_of(heads(*vision.run_tower(tower, patches.to(device), places.to(device))), marks)
        loss.backward()
        norm = optimizer.step(elapsed / (minutes * 60))
        step, samples = step + 1, samples + len(patches)
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


def train_language(
    folder: Path,
    minutes: float,
    log: Log,
    first: dict[str, torch.Tensor] | None = None,
    batch: int = 6,
    peak: float = 1.2e-3,
    device: str = "cpu",
) -> None:
    """Run stage 2: train projector and language model, later also the tower in every third batch; reads `vision.pt`.

    Resumes from `language.pt` in the folder and writes it.

    Temporary heads on the language model's later layers predict what the words of a question refer to: see topics.py. The tower learns from
    the language model's loss and from its own heads, at a twelfth of the rate, so that it does not forget stage 1.

    Only a random part of the given image tokens is kept, and some or all of these are hidden in some layers: see `hidden`. A growing part
    of batches has whole pictures.

    Args:
        folder: of the checkpoints.
        minutes: of training, including earlier runs.
        log: takes progress.
        first: initial weights of a whole model, of which all but the tower's are used.
        batch: pictures per batch, each with about seventeen questions; a third as many when all their patches are given.
        peak: highest learning rate.
        device: "cpu" or "cuda".
    """
    llava, processor = assemble(folder)
    packer = packing.Packer(processor.tokenizer)
    tower = sizes.tower(llava)
    if first is not None:
        llava.load_state_dict(first)
    tower.load_state_dict(torch.load(folder / "vision.pt", map_location="cpu")["tower"])
    llava.to(torch.device(device))  # type: ignore[arg-type]
    heads = vision.Heads(sizes.VISION_WIDTH).to(device)
    heads.load_state_dict(torch.load(folder / "vision.pt", map_location="cpu")["heads"])
    tower.post_layernorm.requires_grad_(False)
    dtype = faster_dtype(device)
    asked = topics.Heads(sizes.TEXT_WIDTH).to(device)
    learned = [llava.model.multi_modal_projector, llava.model.language_model, llava.lm_head, asked]
    optimizer = Optimizer(learned, peak, dtype, slow=[tower, heads])
    step, samples, elapsed = 0, 0, 0.0
    path = folder / "language.pt"
    if path.exists():
        old = torch.load(path, map_location=device)
        optimizer.load(old["optimizer"])
        step, samples, elapsed = old["step"], old["samples"], old["elapsed"]
    log(stage="language", dtype=str(dtype), threads=torch.get_num_threads(), minutes=elapsed / 60)
    whole = torch.zeros(()).share_memory_()
    lessons = packing.Lessons(packer, batch, whole, start=step)
    source = iter(torch.utils.data.DataLoader(lessons, batch_size=None, num_workers=1, prefetch_factor=4))
    began = last = time.monotonic()
    start, seen = elapsed, []
    patches: dict[str, list[float]] = {}
    while elapsed < minutes * 60:
        done = elapsed / (minutes * 60)
        whole.fill_(0.05 + 0.3 * done**2)
        chance = torch.Generator().manual_seed(step)
        packed = next(source)
        places = packed.places
        count, given = places.shape
        kept = packing.choose(chance, count, given, round(kept_share(chance) * given))
        hide, forget, answers = hidden(chance, done, places.gather(1, kept), packed.owner.gather(1, kept), packed.ids.shape)
        hide, forget = (None if t is None else t.to(device) for t in (hide, forget))
        marks = {k: v.to(device) for k, v in packed.marks.items()}
        about = {k: v.to(device) for k, v in packed.topics.items()}
        ids, block, place, target = (t.to(device) for t in (packed.ids, packed.block, packed.place, packed.target))
        packed = packing.Packed(packed.patches.to(device), places.to(device), packed.owner, marks, ids, block, place, target, about)
        kept = kept.to(device)
        both = done > 0.3 and step % 3 == 0
        with torch.set_grad_enabled(both):
            features, local = vision.run_tower(tower, packed.patches, packed.places)
        some = features.gather(1, kept[..., None].expand(-1, -1, features.shape[-1]))
        here = packed.places.gather(1, kept)
        loss, right, told = packing.language_loss(llava, packer, some, here, packed, hide, forget, True, answers)
        guessed, known = asked.loss(told, about)
        total = loss + 0.5 * guessed
        for name, value in known.items():
            patches.setdefault(name, []).append(value)
        if both:
            own, said = vision.loss_of(heads(features, local), marks)
            total = total + 0.6 * own
            for name, value in said.items():
                patches.setdefault(name, []).append(value)
        total.backward()
        norm = optimizer.step(done)
        step, samples = step + 1, samples + count
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


def hidden(
    chance: torch.Generator, done: float, places: torch.Tensor, owner: torch.Tensor, text: torch.Size
) -> tuple[torch.Tensor | None, torch.Tensor | None, float]:
    """Choose `hide`, `forget` and `answers` of `language_loss` for a batch, so that nothing depends on a single token or layer.

    A quarter of the batches sees everything. About a third hides different image tokens in every layer, often together with distant text.
    The others hide image tokens in consecutive layers from questions and answers, from a random layer on from answers only, or in all
    layers from random words of answers.

    Args:
        chance: random generator.
        done: completed fraction of the stage; at first nothing is hidden.
        places: int64 [batch, kept], the image tokens' places on the grid.
        owner: int64 [batch, kept], the items that they show.
        text: shape [batch, text] of the text.
    """
    layers = sizes.TEXT_LAYERS
    way = float(torch.rand((), generator=chance)) if done > HIDE_FROM else 1.0
    if way < 0.35:
        forget = torch.rand(text, generator=chance) < 0.5 * torch.rand((), generator=chance)
        return packing.hidden_places(chance, layers, places, owner), forget if way < 0.2 else None, 0.0
    if way < 0.45:
        length = int(torch.randint(1, layers - 2, (), generator=chance))
        first = int(torch.randint(0, layers - length + 1, (), generator=chance))
        return packing.hidden_in_run(chance, layers, range(first, first + length), places, owner), None, 0.0
    if way < 0.6:
        first = int(torch.randint(0, layers - 2, (), generator=chance))
        return packing.hidden_in_run(chance, layers, range(first, layers), places, owner), None, 1.0
    if way < 0.75:
        words = 0.3 + 0.6 * float(torch.rand((), generator=chance))
        return packing.hidden_in_run(chance, layers, range(layers), places, owner), None, words
    return None, None, 0.0


def kept_share(chance: torch.Generator) -> float:
    """Return the fraction of the given image tokens that a batch keeps: all in a fifth of the batches, else 30 to 100 %."""
    if torch.rand((), generator=chance) < 0.2:
        return 1.0
    return 0.3 + 0.7 * float(torch.rand((), generator=chance))


def part_of(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Return the weights of the module with this name, under that module's own names.

    Raises:
        ValueError: there are none.
    """
    found = {k.split(name, 1)[1].removeprefix("vision_model."): v for k, v in weights.items() if name in k}
    if not found:
        raise ValueError(f"there are no weights of {name.rstrip('.')} in this model")
    return found


def train(
    runs: Path,
    out: Path | None = None,
    *,
    vision_minutes: float = 30,
    whole_share: float = 0.1,
    language_minutes: float = 50,
    first: Path | None = None,
    device: str = "cpu",
    fresh: bool = False,
) -> None:
    """Train, resume and export the bundled model.

    Args:
        runs: folder of checkpoints and logs; training goes on from them.
        out: model folder to write; nothing is exported without it.
        vision_minutes: of stage 1.
        whole_share: part of stage 1 that sees all patches.
        language_minutes: of stage 2.
        first: model folder to begin with instead of random weights.
        device: "cpu" or "cuda".
        fresh: start again instead of going on.
    """
    runs.mkdir(parents=True, exist_ok=True)
    if fresh:
        for name in ("vision.pt", "language.pt", "log.jsonl"):
            (runs / name).unlink(missing_ok=True)
    log = Log(runs / "log.jsonl")
    weights = None
    if first is not None:
        begin_with(runs, first)
        weights = {k: v.float() for k, v in LlavaForConditionalGeneration.from_pretrained(first).state_dict().items()}
    train_vision(runs, vision_minutes, whole_share, log, weights, device=device)
    train_language(runs, language_minutes, log, weights, device=device)
    if out:
        export(runs, out)
