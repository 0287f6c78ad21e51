"""``/sweep`` for programs: the same queue, the same checks and the same events as the page.

No ``from __future__ import annotations`` here: Gradio reads the types of the endpoint from its signature as objects.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr

from avl.engine.sweep import STANDARD, SweepRequest
from avl.trace.sweeps import Sweep
from avl.ui import settings as controls
from avl.ui.api import picture_files
from avl.ui.queue import ThreadTransport
from avl.ui.serving import served
from avl.ui.settings import About
from avl.ui.sweeps import prepare_sweep

POLICY = {"policy": STANDARD.name, **{key: value for key, value in STANDARD.to_dict().items() if key != "name"}}
OVER = {"S": {"from": 5, "to": 60, "step": 5}}


def endpoint(transport: ThreadTransport, about: About, unread: Callable[[str | None], float] = lambda session: 0.0) -> Callable[..., Any]:
    """Return the function behind ``/sweep``.

    Args:
        transport: the queue.
        about: the model that is asked.
        unread: tells for how many seconds a session's oldest message has waited to be read.
    """

    def make(images: list[Any], question: Any, chosen: dict[str, Any], wanted: dict[str, Any]) -> SweepRequest:
        with picture_files(images) as paths:
            return prepare_sweep(paths, question, chosen, wanted, about)

    async def sweep(
        image: dict,
        question: str,
        over: dict = OVER,
        policy: dict = POLICY,
        max_new_tokens: int = about.default_tokens,
        batch: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        repeats: int = 1,
        more_images: list | None = None,
        visitor: gr.Request = None,  # type: ignore[assignment]  # Gradio fills it in, and tells no caller of it
    ) -> AsyncIterator[dict[str, Any]]:
        """Answer one question under full attention, then under one policy over a range of one or two of its parameters.

        Args:
            image: the picture, `gradio_client.handle_file("picture.png")`.
            question: a plain question.
            over: parameter -> a list of values, null for off, or `{"from": 5, "to": 60, "step": 5}`, with
                `"off": true` for off after them; at most 64 points.
            policy: one of POLICIES; its other parameters hold at every point.
            max_new_tokens: most tokens of each answer.
            batch: the same request this many times at once.
            temperature: 0 is greedy.
            top_p: nucleus of the sampling.
            seed: of the sampling.
            repeats: run each point so many times; times are medians.
            more_images: further pictures, each like `image`.
            visitor: who asks; no argument of the endpoint.

        Returns:
            While it runs `{"state", "position", "events"}`; the last value is `{"state": "done", "sweep"}`, where `sweep` has `start`,
            `rows` (full attention first) and `end` with the verdict.
        """
        chosen = {
            "max_new_tokens": max_new_tokens,
            "batch": batch,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "repeats": repeats,
        }
        wanted = {"over": over, "policy": policy}
        if not isinstance(more_images, list | None):
            raise gr.Error("more_images must be a list of pictures.", print_exception=False)
        images = [image, *(more_images or [])]
        del image, more_images
        found = Sweep()
        async for state, events in served(transport, lambda: make(images, question, chosen, wanted), visitor, unread):
            images.clear()  # by now the job has them
            for event in events:
                found.add(event)
            yield {**state, "events": [event.to_dict() for event in events]}
        yield {"state": "done", "sweep": found.to_dict()}

    if sweep.__doc__:  # python -OO has none
        sweep.__doc__ = sweep.__doc__.replace("POLICIES", ", ".join(f"`{example}`" for example in controls.examples()))
    # a generator function's own annotation would be AsyncIterator, which says nothing to a caller
    sweep.__annotations__["return"] = dict
    return sweep
