"""``/ask_on`` for programs: a further question, with the conversation so far as values.

No ``from __future__ import annotations`` here: Gradio reads the types of the endpoint from its signature as objects.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr

from avl.engine.follow_up import FollowUpRequest, options_of
from avl.ui import settings as controls
from avl.ui.api import answered, picture_files
from avl.ui.queue import ThreadTransport
from avl.ui.settings import About
from avl.ui.turns import check_question, history_of


def endpoint(transport: ThreadTransport, about: About, unread: Callable[[str | None], float] = lambda session: 0.0) -> Callable[..., Any]:
    """Return the function behind ``/ask_on``.

    Args:
        transport: the queue.
        about: the model that is asked.
        unread: tells for how many seconds a session's oldest message has waited to be read.
    """
    defaults = controls.settings(about)

    def make(images: list[Any], question: Any, history: Any, chosen: dict[str, Any], reread: Any) -> FollowUpRequest:
        if not isinstance(reread, bool):
            raise ValueError("reread must be true or false.")
        said, asked = history_of(history), check_question(question)
        with picture_files(images) as paths:
            # what is true of a first question is true of a further one, the room for its answers included
            first = controls.prepare(paths, question, {**chosen, "repeats": 1}, about)
        return FollowUpRequest(images=first.images, question=asked, history=said, reread=reread, **options_of(first))

    async def ask_on(
        image: dict,
        question: str,
        history: list,
        arms: list = defaults["arms"],
        max_new_tokens: int = defaults["max_new_tokens"],
        reread: bool = True,
        mode: str = "race",
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        scores: bool = False,
        more_images: list | None = None,
        visitor: gr.Request = None,  # type: ignore[assignment]  # Gradio fills it in, and tells no caller of it
    ) -> AsyncIterator[dict[str, Any]]:
        """Ask a further question about the same pictures: of what every policy has kept, and of the pictures read again.

        Args:
            image: the picture of the first question, `gradio_client.handle_file("picture.png")`.
            question: a plain question.
            history: of the conversation so far, as the last value of `/compare` or `/ask_on` has it.
            arms: the policies of the first question, in the same order; at equal memory, those that its trace names.
            max_new_tokens: most tokens of each answer.
            reread: also answer from the whole conversation as a fresh prompt, under every policy; these arms follow the kept ones.
            mode: "race" or "isolated".
            temperature: 0 is greedy.
            top_p: nucleus of the sampling.
            seed: of the sampling.
            scores: record the attention of every pass afterwards (`scores` events).
            more_images: further pictures of the first question, each like `image`.
            visitor: who asks; no argument of the endpoint.

        Returns:
            As `/compare`: while it runs `{"state", "position", "events"}`, last `{"state": "done", "answers", "history", "trace"}`.
        """
        chosen = {
            "arms": arms,
            "max_new_tokens": max_new_tokens,
            "mode": mode,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "scores": scores,
        }
        if not isinstance(more_images, list | None):
            raise gr.Error("more_images must be a list of pictures.", print_exception=False)
        images = [image, *(more_images or [])]
        del image, more_images
        async for value in answered(
            transport, lambda: make(images, question, history, chosen, reread), images, visitor, unread, lambda: history_of(history)
        ):
            yield value

    # a generator function's own annotation would be AsyncIterator, which says nothing to a caller
    ask_on.__annotations__["return"] = dict
    return ask_on
