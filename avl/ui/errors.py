"""Errors as a visitor hears of them: one clear sentence each, and a kind for the counters."""

from __future__ import annotations

import errno

from avl.engine.failures import device_lost, out_of_memory

LOST = "The device failed and cannot be used again: the server has to be restarted."


class Busy(RuntimeError):
    """A run that cannot be taken now. The message is one sentence for the visitor."""


def sentence(error: BaseException) -> str:
    """Return one clear sentence for the page. Only errors made for a person pass through as they are; the rest goes to the log."""
    name = type(error).__name__
    if _no_upload(error):
        return "This file is no upload of this server: send it with handle_file, or as a data URI."
    if isinstance(error, UnicodeError):
        return "The text holds half a character (a lone surrogate): send it as valid UTF-8."
    if name == "ValidationError":
        return "This file is not described as Gradio describes an upload: send it with handle_file, or as a data URI."
    if isinstance(error, ValueError | Busy):
        text = str(error)
        # the library's sentences begin small; names of parameters stay as they are
        text = text[:1].upper() + text[1:] if text.split(" ")[0].isalpha() else text
        return text if text.endswith((".", "!", "?")) else text + "."
    if name == "HTTPException":
        return str(getattr(error, "detail", name))
    if out_of_memory(error):
        return "The device ran out of memory: choose a smaller batch, fewer new tokens or a smaller picture."
    if device_lost(error):
        return LOST
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "The server's disk is full: try again later."
    return f"The run failed inside ({name}); the server's log has the details."


def _no_upload(error: BaseException) -> bool:
    """Whether a path was refused: by Gradio, whose own words repeat paths of the server, or as no path at all."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP)
    return type(error).__name__ == "InvalidPathError" or "null byte" in str(error)


def kind(error: BaseException) -> str:
    """Return the kind of an error: input, busy, memory, device or internal."""
    if isinstance(error, Busy):
        return "busy"
    if isinstance(error, ValueError) or _no_upload(error):
        return "input"
    return "memory" if out_of_memory(error) else "device" if device_lost(error) else "internal"
