"""``/compare`` for programs: the same queue, the same checks and the same events as the page.

No ``from __future__ import annotations`` here: Gradio reads the types of the endpoint from its signature as objects.
"""

import base64
import binascii
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from avl import trace
from avl.engine.conversation import Said
from avl.engine.request import GenerationRequest
from avl.ui import settings as controls
from avl.ui.queue import ThreadTransport
from avl.ui.serving import served
from avl.ui.settings import About
from avl.ui.turns import told_history

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


@contextlib.contextmanager
def picture_files(images: Sequence[Any]) -> Iterator[list[Path]]:
    """Give a program's pictures as files, those that came as data for as long as this is open; one more than may be asked about at most.

    Raises:
        ValueError: as :func:`picture_path`.
    """
    with tempfile.TemporaryDirectory() as folder:
        some = enumerate(images[: controls.MAX_PICTURES + 1])
        yield [picture_path(image, Path(folder), f"picture-{number}") for number, image in some]


async def answered(
    transport: ThreadTransport,
    make: Callable[[], GenerationRequest],
    images: list[Any],
    visitor: gr.Request | None,
    unread: Callable[[str | None], float],
    before: Callable[[], Sequence[Said]] = tuple,
) -> AsyncIterator[dict[str, Any]]:
    """Yield what a program gets of a run: states and events, at last the answers, the history and the whole trace.

    Args:
        transport: the queue.
        make: builds and checks the request.
        images: that it is made of; emptied once the job has them.
        visitor: who asks.
        unread: tells for how many seconds a session's oldest message has waited to be read.
        before: gives the turns before this one.

    Raises:
        gr.Error: the request was refused or failed; one sentence.
    """
    run = trace.Trace()
    async for state, events in served(transport, make, visitor, unread):
        images.clear()  # by now the job has them
        for event in events:
            run.append(event)
        yield {**state, "events": [event.to_dict() for event in events]}
    yield {
        "state": "done",
        "answers": [event.text for event in sorted(run.of(trace.End), key=lambda end: end.arm)],
        "history": told_history(before(), run),
        "trace": {"schema": trace.SCHEMA, "meta": run.meta, "images": [], "events": [event.to_dict() for event in run]},
    }


def endpoint(transport: ThreadTransport, about: About, unread: Callable[[str | None], float] = lambda session: 0.0) -> Callable[..., Any]:
    """Return the function behind ``/compare``.

    Args:
        transport: the queue.
        about: the model that is asked.
        unread: tells for how many seconds a session's oldest message has waited to be read.
    """
    defaults = controls.settings(about)

    def make(images: list[Any], question: Any, chosen: dict[str, Any]) -> GenerationRequest:
        with picture_files(images) as paths:
            return controls.prepare(paths, question, chosen, about)

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
        agreement: bool = False,
        equal_memory: bool = False,
        visitor: gr.Request = None,  # type: ignore[assignment]  # Gradio fills it in, and tells no caller of it
    ) -> AsyncIterator[dict[str, Any]]:
        """Answer one question about a picture, or several, under 1 to MAX_ARMS policies.

        Args:
            image: the picture, `gradio_client.handle_file("picture.png")`.
            question: a plain question.
            arms: 1 to MAX_ARMS of POLICIES; parameters may be left out, null is off.
            max_new_tokens: most tokens of each answer.
            mode: "race" or "isolated".
            batch: the same request this many times at once.
            temperature: 0 is greedy.
            top_p: nucleus of the sampling.
            seed: of the sampling.
            repeats: run it so many times; each further time is one `repeat` event per arm.
            scores: record the attention of every pass afterwards (`scores` events).
            more_images: further pictures, each like `image`.
            agreement: feed full attention's answer through every arm afterwards and compare each token (an `agreement` event per arm).
            equal_memory: set the budget of every arm so that it stores what the first A-VL does (without one, the first arm with a budget).
            visitor: who asks; no argument of the endpoint.

        Returns:
            While it runs `{"state", "position", "events"}`; the last value is `{"state": "done", "answers", "history", "trace"}` with the
            whole trace.
            `history` is for `/ask_on`; null where nothing can follow, as with a batch.
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
            "agreement": agreement,
            "equal_memory": equal_memory,
        }
        if not isinstance(more_images, list | None):
            raise gr.Error("more_images must be a list of pictures.", print_exception=False)
        images = [image, *(more_images or [])]
        del image, more_images
        async for value in answered(transport, lambda: make(images, question, chosen), images, visitor, unread):
            yield value

    if compare.__doc__:  # python -OO has none
        compare.__doc__ = compare.__doc__.replace("MAX_ARMS", str(controls.MAX_ARMS)).replace(
            "POLICIES", ", ".join(f"`{example}`" for example in controls.examples())
        )
    # a generator function's own annotation would be AsyncIterator, which says nothing to a caller
    compare.__annotations__["return"] = dict
    return compare
