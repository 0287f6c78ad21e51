"""The start of the page, in steps that are counted: imports, the model, the page, the warm-up."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avl import trace
from avl.engine import scheduler
from avl.engine.follow_up import FollowUps
from avl.engine.request import GenerationRequest
from avl.models.checkpoints import CHECKPOINTS
from avl.models.families import describe, family_of
from avl.models.loading import load, model_name
from avl.models.placement import SPREAD, devices, placement
from avl.policies import AVL, Full
from avl.policies.presets import UNMEASURED
from avl.telemetry import gpu_trouble, idle, machine_card, package_version
from avl.tiny.data import scenes
from avl.ui import hosting
from avl.ui.progress import Progress
from avl.ui.serve import absent

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
WARM_UP = "Warming the model up (at the first start, kernels are compiled)"
QUESTION = "Describe the picture."
"""Of the warm-up, and of the counts that the page opens with."""
BATCH_NOTE = (
    "Expect little or no speedup at batch size 1: A-VL reduces KV-cache memory and reads, "
    "which dominate latency only with large batches or many image tokens."
)


def build(
    name: str,
    model_options: dict[str, Any],
    zero_gpu: Any,
    limits: Limits | None,
    metrics: bool,
    log_json: bool,
    folder: Path,
    progress: Progress,
) -> Page:
    """Load the model, build the page and warm the model up.

    Args:
        name: of the model.
        model_options: other arguments of ``avl.load``.
        zero_gpu: ``spaces.GPU`` on ZeroGPU, else None.
        limits: as for ``page.build``.
        metrics: likewise.
        log_json: whether to log every run, as JSON.
        folder: for uploads, this process's own.
        progress: hears of each step.

    Raises:
        OSError, TypeError, ValueError: a step failed; one sentence.
    """
    progress.step("Loading the page's libraries")
    with starting("import the page"):
        gallery, page, logs = _page_modules()
    logs.set_up(log_json)
    with starting(f"load the model {name}"):
        progress.step("Looking at the model's files")
        model, processor = load(name, progress=progress.count, **model_options)
    progress.step("Building the page")
    # a process of ZeroGPU's serves one call: what it holds is of no use to the next
    held = {"seconds": 0.0} if zero_gpu else {}
    run = FollowUps(model, processor, functools.partial(scheduler.run, model, processor), **held)
    warm_up = functools.partial(_warm_up, run, name, progress)
    with starting(f"describe the model {name}"):
        about = _about(model, processor, name, on_device=not zero_gpu)
    with starting("build the page"):
        built: Page = page.build(
            run,
            about,
            scene=lambda seed: scenes.draw(seed, "test"),
            recorded=gallery.recording(about.bundled),
            zero_gpu=zero_gpu,
            warm_up=warm_up,
            # on ZeroGPU the process that serves must not touch CUDA: nothing is read, and its children warm up
            idle=None if zero_gpu else lambda: idle(model.device),
            limits=limits,
            metrics=metrics,
            own_folder=folder,
        )
    if not zero_gpu:
        try:
            progress.step(WARM_UP)
            with starting(f"warm up the model {name}"):
                built.transport.rehearse(warm_up)
        except BaseException:
            built.transport.close()
            raise
    return built


def _page_modules() -> tuple[Any, Any, Any]:
    """Import what needs the packages of the extra ``page``."""
    try:
        from avl.ui import gallery, logs, page
    except ModuleNotFoundError as error:
        raise absent(error) from None
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


def _warm_up(run: Race, name: str, progress: Progress, stop: threading.Event) -> None:
    """Answer one question, counting the tokens; ends early where ``stop`` is set.

    Raises:
        OSError: the model cannot run here.
    """
    policies, tokens, done = (Full(), AVL(S=45, C=30, K=3, P=90, T=60)), 6, 0
    warm = GenerationRequest((scenes.draw(0).image,), QUESTION, policies, max_new_tokens=tokens)
    for event in run(warm, stop):
        if isinstance(event, trace.Error):
            raise OSError(f"the model {name} loads but cannot run here: {event.message}")
        if isinstance(event, trace.Prefill | trace.Step):
            done += 1
            progress.count(WARM_UP, done, tokens * len(policies), "tokens")


def _about(model: Any, processor: Any, name: str, on_device: bool = True) -> About:
    """Return what the page says of a model, which need not run for it.

    Args:
        model: from ``avl.load``.
        processor: from ``avl.load``.
        name: what it was loaded by.
        on_device: whether this process may ask the GPU what it is.
    """
    from avl.bench.what_if import of_loaded
    from avl.ui.prompts import measure_with
    from avl.ui.settings import About, table_row

    facts, measure = describe(model), measure_with(model, processor)
    prompt = measure((scenes.draw(0).image.size,), QUESTION)
    machine = machine_card(model.device) if on_device else {}
    hardware = machine.get("gpu") or machine.get("cpu") or "ZeroGPU"
    bundled = name == "tiny"
    return About(
        name="bundled small LLaVA" if bundled else model_name(model),
        layers=facts.layers,
        n_image=prompt.n_image,
        n_text=prompt.n_text,
        token_bytes=facts.token_bytes(model.dtype.itemsize),
        device=placement(model),
        dtype=str(model.dtype).removeprefix("torch."),
        title="A-VL × LLaVA" if family_of(model.config).prefix.startswith("Llava") else "A-VL",
        machine=f"{hardware}, torch {package_version('torch')}",
        bundled=bundled,
        preset="" if bundled else table_row(name, model.config),
        default_tokens=96,
        notes=(
            *_warnings(model, on_device),
            *([BUNDLED_NOTE] if bundled else []),
            *([UNMEASURED] if family_of(model.config).preset is None else []),
            BATCH_NOTE,
            *hosting.notes(str(model.device)),
        ),
        context=facts.context,
        measure=measure,
        no_turns=family_of(model.config).no_turns() or "",
        sizes=of_loaded(model, "tiny" if bundled else name if name in CHECKPOINTS else model_name(model), prompt.n_image),
    )


def _warnings(model: Any, on_device: bool) -> list[str]:
    """Return what about this machine makes the model slower than it could be, a sentence each."""
    count, trouble = len(devices(model)), gpu_trouble() if on_device else None
    told = [SPREAD.format(count=count)] if count > 1 else []
    if trouble is not None:
        told.append(f"Torch is a CUDA build, but no GPU can be used here ({trouble}): everything runs on the CPU.")
    return told
