"""``/compare`` for programs: the same queue, the same checks and the same events as the page.

No ``from __future__ import annotations`` here: Gradio reads the types of the endpoint from its signature as objects.
"""

import asyncio
import base64
import binascii
import logging
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from avl import trace
from avl.engine.request import GenerationRequest
from avl.ui import settings as controls
from avl.ui.errors import kind, sentence
from avl.ui.job import Job
from avl.ui.queue import ThreadTransport, batches
from avl.ui.settings import About
from avl.ui.visitors import visitor_of

log = logging.getLogger(__name__)

MAX_BYTES = 8 * 2**20


def picture_path(image: Any, folder: Path, name: str = "picture") -> Path:
    """Return an API picture as a file: an upload of this server (``handle_file``), or a data URI. Never another path of the server.

    Gradio checks the paths of components, but hands the arguments of an API endpoint over as they came.
    """
    if isinstance(image, dict) and isinstance(image.get("path"), str):
        path = Path(image["path"]).resolve()
        if path.is_relative_to(Path(get_upload_folder()).resolve()) and path.is_file():
            return path
    if isinstance(image, dict) and isinstance(image.get("url"), str):
        image = image["url"]
    if isinstance(image, str) and image.startswith("data:image/") and ";base64," in image[:64]:
        data = image.split(",", 1)[1]
        if len(data) > MAX_BYTES * 4 // 3:
            raise ValueError(f"The picture is too large: {MAX_BYTES // 2**20} MB at most.")
        try:
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("This data URI is not valid base64.") from None
        path = folder / name
        path.write_bytes(content)
        return path
    raise ValueError("Pass the picture with gradio_client.handle_file(...), or as a data URI (data:image/png;base64,…).")


def endpoint(transport: ThreadTransport, about: About, unread: Callable[[str | None], float] = lambda session: 0.0) -> Callable[..., Any]:
    """Return the function behind ``/compare``.

    Args:
        transport: the queue.
        about: the model that is asked.
        unread: tells for how many seconds a session's oldest message has waited to be read.
    """
    defaults = controls.settings(about)

    def check(images: list[Any], question: Any, chosen: dict[str, Any]) -> GenerationRequest:
        with tempfile.TemporaryDirectory() as folder:
            some = enumerate(images[: controls.MAX_PICTURES + 1])
            paths = [picture_path(image, Path(folder), f"picture-{number}") for number, image in some]
            request = controls.prepare(paths, question, chosen, about)
        transport.limits.check_work(request)
        return request

    async def compare(
        image: dict,
        question: str,
        arms: list = defaults["arms"],
        max_new_tokens: int = defaults["max_new_tokens"],
        mode: str = "race",
        batch: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        repeats: int = 1,
        scores: bool = False,
        more_images: list | None = None,
        visitor: gr.Request = None,  # type: ignore[assignment]  # Gradio fills it in, and tells no caller of it
    ) -> AsyncIterator[dict[str, Any]]:
        """Answer one question about a picture, or several, under one or two policies.

        Args:
            image: the picture, `gradio_client.handle_file("picture.png")`.
            question: a plain question.
            arms: one or two of POLICIES; parameters may be left out, null is off.
            max_new_tokens: most tokens of each answer.
            mode: "race" or "isolated".
            batch: the same request this many times at once.
            temperature: 0 is greedy.
            top_p: nucleus of the sampling.
            seed: of the sampling.
            repeats: run it so many times; each further time is one `repeat` event per arm.
            scores: record the attention of every pass afterwards (`scores` events).
            more_images: further pictures, each like `image`.
            visitor: who asks; no argument of the endpoint.

        Returns:
            While it runs `{"state", "position", "events"}`; the last value is `{"state": "done", "answers", "trace"}` with the whole trace.
        """
        chosen = {
            "arms": arms,
            "max_new_tokens": max_new_tokens,
            "mode": mode,
            "batch": batch,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "repeats": repeats,
            "scores": scores,
        }
        job: Job | None = None
        try:
            if not isinstance(more_images, list | None):
                raise ValueError("more_images must be a list of pictures.")
            request = await asyncio.to_thread(check, [image, *(more_images or [])], question, chosen)
            del image, more_images
            job = transport.submit(request, f"api-{secrets.token_hex(8)}", visitor_of(visitor))
            del request
            run = trace.Trace()
            session = visitor.session_hash if visitor is not None else None
            async for events in batches(transport, job, unread=lambda: unread(session)):
                for event in events:
                    run.append(event)
                # "done" is said once, by the value that has the answers
                yield {
                    "state": "running" if job.state == "done" else job.state,
                    "position": transport.position(job),
                    "events": [event.to_dict() for event in events],
                }
            errors = [event.message for event in run if isinstance(event, trace.Error)]
            if errors:
                raise ValueError(errors[-1])
            yield {
                "state": "done",
                "answers": [event.text for event in sorted(run.of(trace.End), key=lambda end: end.arm)],
                "trace": {"schema": trace.SCHEMA, "meta": run.meta, "images": [], "events": [event.to_dict() for event in run]},
            }
        except Exception as error:  # a person sees a sentence, the log the rest
            if kind(error) not in ("input", "busy"):
                log.exception("the endpoint failed")
            if job is None:
                transport.refused(error)
            raise gr.Error(sentence(error), print_exception=False) from None
        finally:
            if job is not None:
                transport.leave(job)

    if compare.__doc__:  # python -OO has none
        compare.__doc__ = compare.__doc__.replace("POLICIES", ", ".join(f"`{example}`" for example in controls.examples()))
    # a generator function's own annotation would be AsyncIterator, which says nothing to a caller
    compare.__annotations__["return"] = dict
    return compare
