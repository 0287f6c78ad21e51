"""``avl train-tiny``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def train_tiny(
    runs: Annotated[Path, typer.Option(help="checkpoints and logs; training goes on from them")] = Path("runs/tiny"),
    out: Annotated[Path | None, typer.Option(help="model folder to write; nothing is exported without it")] = None,
    vision_minutes: Annotated[float, typer.Option(help="stage 1")] = 30,
    whole_share: Annotated[float, typer.Option(help="part of stage 1 that sees all patches")] = 0.1,
    language_minutes: Annotated[float, typer.Option(help="stage 2")] = 50,
    first: Annotated[Path | None, typer.Option(help="model folder to begin with instead of random weights")] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="where it trains")] = "cpu",
    fresh: Annotated[bool, typer.Option("--fresh", help="start again instead of going on")] = False,
) -> None:
    """Train the bundled model again: stage 1 is the vision tower, stage 2 the language model; then the export."""
    from avl.tiny.recipe.train import train

    train(
        runs,
        out,
        vision_minutes=vision_minutes,
        whole_share=whole_share,
        language_minutes=language_minutes,
        first=first,
        device=device,
        fresh=fresh,
    )
