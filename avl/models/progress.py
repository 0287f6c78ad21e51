"""How much of a checkpoint is downloaded and loaded, from the bars that huggingface_hub and transformers draw."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from tqdm.auto import tqdm

Report = Callable[[str, int, int, str], None]
"""Hears what is done, how much of it, of how much (0 where nobody knows), and the unit: "bytes" or "weights"."""

DOWNLOAD, LOAD = "Downloading the weights", "Loading the weights"
LOADING = "Loading weights"
"""What transformers calls its bar."""
LEAST_BYTES = 1 << 20
"""Files below are no weights."""


@contextlib.contextmanager
def reported(report: Report | None) -> Iterator[dict[str, Any]]:
    """Yield the arguments of ``from_pretrained`` with which ``report`` hears of its bars; the bars themselves stay.

    Args:
        report: None for nobody.
    """
    if report is None:
        yield {}
        return
    from transformers.utils import logging

    tell: Report = report  # mypy forgets in the class below that it is not None

    class Bar(tqdm):
        """A bar that also reports; of those of huggingface_hub, one that counts bytes of weights."""

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)  # of huggingface_hub's own class
            # bytes that come in are counted twice: on their way, and as they are written
            self._counts = options.get("unit") == "B" and options.get("desc") != "Downloading bytes"
            self._done = int(options.get("initial") or 0)
            super().__init__(*args, **options)

        def update(self, n: float | None = 1) -> bool | None:
            self._done += int(n or 0)
            total = int(self.total or 0)
            if self._counts and total > LEAST_BYTES:
                tell(DOWNLOAD, self._done, total, "bytes")
            return super().update(n)

    def made(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        bar = factory(*args, **options)
        return _counted(bar, len(args[0]), report) if options.get("desc") == LOADING and args else bar

    before = logging.set_tqdm_hook(made)
    try:
        yield {"tqdm_class": Bar}
    finally:
        logging.set_tqdm_hook(before)


def _counted(bar: Any, total: int, report: Report) -> Iterator[Any]:
    for done, one in enumerate(bar, 1):
        yield one
        report(LOAD, done, total, "weights")
