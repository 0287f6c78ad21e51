"""The page: load a LLaVA, warm it up, serve. ``python app.py --help`` tells the options."""

from __future__ import annotations

import argparse
import functools
import os
import sys
import threading

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import avl
from avl import telemetry, trace
from avl.engine import scheduler
from avl.engine.request import GenerationRequest
from avl.models.loading import CHECKPOINTS
from avl.tiny.data import scenes
from avl.ui import gallery, page
from avl.ui.settings import About

try:
    import spaces  # Hugging Face's ZeroGPU: to be imported before CUDA is touched
except ImportError:
    spaces = None

BUNDLED_NOTE = (
    "The bundled model is a small LLaVA of the same architecture, trained on drawn scenes, so that this page is live on any machine: "
    "it is no evidence about real LLaVA."
)
BATCH_NOTE = (
    "At batch 1 expect little or no gain in time: A-VL saves memory and cache reads, "
    "and those decide the time only at large batch and with long pictures."
)


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags beat environment beat defaults; unset host and port leave GRADIO_SERVER_NAME and GRADIO_SERVER_PORT in charge."""
    parser = argparse.ArgumentParser(description="A-VL against full attention on LLaVA, live, at http://127.0.0.1:7860")
    parser.add_argument("--model", default="tiny", help=f"tiny (bundled), {', '.join(CHECKPOINTS)}, a Hub id or a local folder")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub model")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1 or cpu")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bf16", "fp16", "fp32"))
    parser.add_argument("--host", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int)
    parser.add_argument("--share", action="store_true", help="ask Gradio for a public link")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Start the page; blocks until it is stopped."""
    flags = options(argv)
    try:
        model, processor = avl.load(flags.model, device=flags.device, dtype=flags.dtype, revision=flags.revision)
    except (OSError, ValueError, TypeError) as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 1

    race = functools.partial(scheduler.run, model, processor)
    bundled = flags.model == "tiny"
    policies = (avl.Full(), avl.AVL(S=45, C=30, K=3, P=90, T=60))
    warm = GenerationRequest((scenes.draw(0).image,), "Describe the picture.", policies, max_new_tokens=6)
    start = next(event for event in list(race(warm, threading.Event())) if isinstance(event, trace.Start))
    hardware = start.machine.get("gpu") or start.machine.get("cpu")
    about = About(
        name="bundled small LLaVA" if bundled else flags.model,
        layers=start.layers,
        n_image=start.n_image,
        n_text=start.n_text,
        token_bytes=start.token_bytes,
        device=str(start.model["device"]),
        dtype=str(start.model["dtype"]),
        machine=f"{hardware}, torch {start.machine.get('torch')}",
        bundled=bundled,
        preset=flags.model,
        default_tokens=96,
        notes=(*([BUNDLED_NOTE] if bundled else []), BATCH_NOTE),
    )
    zero_gpu = spaces.GPU if spaces is not None and os.environ.get("SPACES_ZERO_GPU") else None
    built = page.build(
        race,
        about,
        scene=lambda seed: scenes.draw(seed, "test"),
        recorded=gallery.recording(bundled),
        zero_gpu=zero_gpu,
        idle=lambda: telemetry.idle(model.device),
    )
    built.launch(server_name=flags.host, server_port=flags.port, share=flags.share)
    return 0


if __name__ == "__main__":
    sys.exit(main())
