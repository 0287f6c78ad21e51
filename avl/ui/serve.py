"""Start the page: load a model, warm it up, serve."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avl import trace
from avl.engine import scheduler
from avl.engine.request import GenerationRequest
from avl.models.families import describe, family_of
from avl.models.loading import load, model_name
from avl.policies import AVL, Full
from avl.policies.presets import UNMEASURED
from avl.telemetry import idle
from avl.tiny.data import scenes
from avl.ui import address, shutdown, uploads
from avl.ui.security import host_names

if TYPE_CHECKING:
    from avl.ui.limits import Limits
    from avl.ui.page import Page
    from avl.ui.queue import Race
    from avl.ui.settings import About

log = logging.getLogger(__name__)

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
    allowed_hosts: Sequence[str] | None = None,
    trusted_proxies: str | None = None,
    limits: Limits | None = None,
    metrics: bool = True,
    log_json: bool = False,
) -> None:
    """Start the page and block until SIGINT or SIGTERM; then let the running step end, tell visitors, and delete temporary files.

    Args:
        name: of the model, as for ``avl.load``.
        revision: branch, tag or commit of a Hub model.
        device: as for ``avl.load``.
        dtype: as for ``avl.load``.
        host: address to listen on, None for GRADIO_SERVER_NAME or else this machine only.
        port: to listen on, None for GRADIO_SERVER_PORT or else the first free one from 7860.
        share: ask Gradio for a public link.
        allowed_hosts: host names to answer for; None for all, or for those of this machine where only it can connect.
        trusted_proxies: addresses of proxies that name the visitor, as uvicorn's FORWARDED_ALLOW_IPS.
        limits: how much visitors may take.
        metrics: whether ``/metrics`` answers.
        log_json: whether to log every run, as JSON.

    Raises:
        OSError, TypeError, ValueError: the server cannot start; one sentence.
    """
    zero_gpu = _zero_gpu()
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")  # Gradio tells the last ones' times over after every call
    if trusted_proxies is not None:
        os.environ["FORWARDED_ALLOW_IPS"] = address.check_proxies(trusted_proxies)  # read by uvicorn
    elif os.environ.get("SPACE_ID"):
        os.environ.setdefault("FORWARDED_ALLOW_IPS", address.PRIVATE)  # where a Space's proxy is
    host_names(allowed_hosts, host)
    host, port = address.check(host, port)
    folder = uploads.make_folder()  # before Gradio is imported, which makes folders in it
    ended = True
    with shutdown.Signals() as signals:
        try:
            built = _build(name, revision, device, dtype, zero_gpu, limits, metrics, log_json, folder)
            signals.listening()  # before the port answers: Gradio is busy for a while after it does
            try:
                with starting(f"listen on {host}, port {port}"):
                    _listen(built, allowed_hosts, host, port, share)
                signals.wait()
            finally:
                ended = shutdown.shut_down(built)
        finally:
            uploads.remove_folder(folder)
    shutdown.leave(ended)


def _listen(built: Page, hosts: Sequence[str] | None, host: str, port: int, share: bool) -> None:
    try:
        built.launch(hosts, server_name=host, server_port=port, share=share, prevent_thread_lock=True)
    except OSError as error:
        if "empty port" not in str(error):
            raise
        # Gradio gives its server five seconds; that the port is free was checked
        raise OSError(f"the web server did not come up on {host}, port {port}: start again, this machine may be very busy") from None


def _build(
    name: str,
    revision: str | None,
    device: str,
    dtype: str,
    zero_gpu: Any,
    limits: Limits | None,
    metrics: bool,
    log_json: bool,
    folder: Path,
) -> Page:
    """Load the model, warm it up and build the page."""
    with starting("import the page"):
        gallery, page, logs = _page_modules()
    logs.set_up(log_json)
    with starting(f"load the model {name}"):
        model, processor = load(name, device=device, dtype=dtype, revision=revision)
    run = functools.partial(scheduler.run, model, processor)
    with starting(f"warm up the model {name}"):
        about = _about(model, processor, run, name)
    with starting("build the page"):
        return page.build(
            run,
            about,
            scene=lambda seed: scenes.draw(seed, "test"),
            recorded=gallery.recording(about.bundled),
            zero_gpu=zero_gpu,
            idle=lambda: idle(model.device),
            limits=limits,
            metrics=metrics,
            own_folder=folder,
        )


def _page_modules() -> tuple[Any, Any, Any]:
    """Import what needs the packages of the extra ``page``."""
    try:
        from avl.ui import gallery, logs, page
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "plotly", "prometheus_client"):
            raise
        raise OSError(
            f"the page needs {error.name}, which is not installed: install this package with its extra, pip install '.[page]' in a "
            "checkout or pip install 'PATH_OF_THE_WHEEL[page]'"
        ) from None
    return gallery, page, logs


@contextlib.contextmanager
def starting(what: str) -> Iterator[None]:
    """Turn whatever keeps the server from starting into one sentence.

    Raises:
        OSError, TypeError, ValueError: as they are where they were made for a person, else OSError that says what failed.
    """
    try:
        yield
    except Exception as error:
        if type(error) in (OSError, TypeError, ValueError):
            raise
        log.info("cannot %s", what, exc_info=True)
        lines = str(error).strip().splitlines() or ["no more is known"]
        raise OSError(f"cannot {what}: {lines[0]} ({type(error).__name__})") from None


def _about(model: Any, processor: Any, run: Race, name: str) -> About:
    """Warm the model up and return what the page says of it."""
    from avl.ui.prompts import measure_with
    from avl.ui.settings import About, table_row

    warm = GenerationRequest((scenes.draw(0).image,), "Describe the picture.", (Full(), AVL(S=45, C=30, K=3, P=90, T=60)), max_new_tokens=6)
    events = list(run(warm, threading.Event()))
    for event in events:
        if isinstance(event, trace.Error):
            raise OSError(f"the model {name} loads but cannot run here: {event.message}")
    start = next(event for event in events if isinstance(event, trace.Start))
    hardware = start.machine.get("gpu") or start.machine.get("cpu")
    bundled = name == "tiny"
    return About(
        name="bundled small LLaVA" if bundled else model_name(model),
        layers=start.layers,
        n_image=start.n_image,
        n_text=start.n_text,
        token_bytes=start.token_bytes,
        device=str(start.model["device"]),
        dtype=str(start.model["dtype"]),
        title="A-VL × LLaVA" if family_of(model.config).prefix.startswith("Llava") else "A-VL",
        machine=f"{hardware}, torch {start.machine.get('torch')}",
        bundled=bundled,
        preset="" if bundled else table_row(name, model.config),
        default_tokens=96,
        notes=(*([BUNDLED_NOTE] if bundled else []), *([UNMEASURED] if family_of(model.config).preset is None else []), BATCH_NOTE),
        context=describe(model).context,
        measure=measure_with(model, processor),
    )


def _zero_gpu() -> Any:
    """Hugging Face's ZeroGPU decorator on a machine that has it, else None. Its library wants to be imported before CUDA is touched."""
    with contextlib.suppress(ImportError):
        import spaces

        if os.environ.get("SPACES_ZERO_GPU"):
            return spaces.GPU
    return None
