"""Gradio's Blocks whose every failure is a sentence: whatever a handler, or Gradio before it, raises."""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr
from fastapi.exceptions import RequestValidationError
from gradio.route_utils import FnIndexInferError
from starlette.requests import Request
from starlette.responses import JSONResponse

from avl.ui.errors import kind, sentence

log = logging.getLogger(__name__)


class SpokenBlocks(gr.Blocks):
    """All calls, of the page and of programs, pass through :meth:`process_api`. Gradio alone answers most failures with ``null``."""

    async def process_api(self, block_fn: Any, inputs: list[Any], *args: Any, **options: Any) -> dict[str, Any]:
        """As Gradio's; arguments that a program leaves out at the end have their defaults.

        Raises:
            gr.Error: the call failed; one sentence.
        """
        try:
            function = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
            if function.api_visibility == "public" and len(inputs) < len(function.inputs):
                inputs = [*inputs, *(getattr(component, "value", None) for component in function.inputs[len(inputs) :])]
            _check_addresses(inputs)
            return await super().process_api(block_fn, inputs, *args, **options)
        except gr.Error:
            raise
        except Exception as error:
            if kind(error) != "input":
                log.exception("a call failed")
            raise gr.Error(sentence(error), print_exception=False) from None


def _check_addresses(inputs: list[Any]) -> None:
    """Refuse files that lie on other servers: Gradio would fetch them, of any size, from inside this network.

    Raises:
        ValueError: there is one; one sentence.
    """
    pending: list[Any] = [inputs]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and "://" in path[:16]:
                raise ValueError("Pictures are not fetched from other addresses: send the file itself with handle_file.")
            pending += value.values()
        elif isinstance(value, list):
            pending += value


async def say(_: Request, error: Exception) -> JSONResponse:
    """Answer a request that failed outside of a call: a foreign function, a component that does not exist."""
    text = error.message if isinstance(error, gr.Error) else sentence(error)
    return JSONResponse({"error": text, "detail": text}, 500)


async def say_missing(_: Request, error: Exception) -> JSONResponse:
    """Answer a request for a function or a component that does not exist."""
    text = "There is no such function here: see “Use via API” on the page."
    log.info("%s: %s", type(error).__name__, error)
    return JSONResponse({"error": text, "detail": text}, 404)


async def say_invalid(_: Request, error: Exception) -> JSONResponse:
    """Answer a request whose arguments are not those of the function. FastAPI alone repeats the whole request."""
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    place = ".".join(str(part) for part in first.get("loc", ())[:4])
    text = f"This is not what the function takes ({place}: {first['msg']})." if first else "These are not the arguments of the function."
    log.info("invalid arguments", exc_info=None if first else error)
    return JSONResponse({"error": text, "detail": text}, 422)


HANDLERS: dict[Any, Any] = {
    gr.Error: say,
    KeyError: say_missing,
    FnIndexInferError: say_missing,
    TypeError: say_invalid,
    RequestValidationError: say_invalid,
    Exception: say,  # the only one that the server logs as a failure of its own
}
