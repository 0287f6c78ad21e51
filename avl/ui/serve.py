"""Start the page: load a LLaVA, warm it up, serve."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from typing import Any

from avl import trace
from avl.engine import scheduler
from avl.engine.request import GenerationRequest
from avl.models.families import describe
from avl.models.loading import load, model_name
from avl.policies import AVL, Full
from avl.telemetry import idle
from avl.tiny.data import scenes

BUNDLED_NOTE = (
    "This demo runs a 6.3M-parameter LLaVA trained on synthetic scenes, so it works on any machine. "
    "Its results do not transfer to full-size LLaVA."
)
BATCH_NOTE = (
    "Expect little or no speedup at batch size 1: A-VL reduces KV-cache memory and reads, "
    "which dominate latency only with large batches or many image tokens."
)


def serve(
    name: str = "tiny",
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
) -> None:
    """Start the page and block until it is stopped.

    Args:
        name: of the model, as for ``avl.load``.
        revision: branch, tag or commit of a Hub model.
        device: as for ``avl.load``.
        dtype: as for ``avl.load``.
        host: address to listen on, None for GRADIO_SERVER_NAME or else this machine only.
        port: to listen on, None for GRADIO_SERVER_PORT or else the first free one from 7860.
        share: ask Gradio for a public link.

    Raises:
        OSError, TypeError, ValueError: as ``avl.load``, and OSError where gradio or plotly is not installed.
    """
    zero_gpu = _zero_gpu()
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    try:
        from avl.ui import gallery, page
        from avl.ui.prompts import measure_with
        from avl.ui.settings import About, table_row
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "plotly"):
            raise
        raise OSError(
            f"the page needs {error.name}, which is not installed: install this package with its extra, pip install '.[page]' in a "
            "checkout or pip install 'PATH_OF_THE_WHEEL[page]'"
        ) from None
    model, processor = load(name, device=device, dtype=dtype, revision=revision)

    run = functools.partial(scheduler.run, model, processor)
    bundled = name == "tiny"
    policies = (Full(), AVL(S=45, C=30, K=3, P=90, T=60))
    warm = GenerationRequest((scenes.draw(0).image,), "Describe the picture.", policies, max_new_tokens=6)
    start = next(event for event in list(run(warm, threading.Event())) if isinstance(event, trace.Start))
    hardware = start.machine.get("gpu") or start.machine.get("cpu")
    about = About(
        name="bundled small LLaVA" if bundled else model_name(model),
        layers=start.layers,
        n_image=start.n_image,
        n_text=start.n_text,
        token_bytes=start.token_bytes,
        device=str(start.model["device"]),
        dtype=str(start.model["dtype"]),
        machine=f"{hardware}, torch {start.machine.get('torch')}",
        bundled=bundled,
        preset="" if bundled else table_row(name, model.config),
        default_tokens=96,
        notes=(*([BUNDLED_NOTE] if bundled else []), BATCH_NOTE),
        context=describe(model).context,
        measure=measure_with(model, processor),
    )
    built = page.build(
        run,
        about,
        scene=lambda seed: scenes.draw(seed, "test"),
        recorded=gallery.recording(bundled),
        zero_gpu=zero_gpu,
        idle=lambda: idle(model.device),
    )
    built.launch(server_name=host, server_port=port, share=share)


def _zero_gpu() -> Any:
    """Hugging Face's ZeroGPU decorator on a machine that has it, else None. Its library wants to be imported before CUDA is touched."""
    with contextlib.suppress(ImportError):
        import spaces

        if os.environ.get("SPACES_ZERO_GPU"):
            return spaces.GPU
    return None
