"""Serve the page: the port answers at once, the model loads behind it, the page takes the port over.

Nothing heavy is imported before the port answers: torch and Gradio alone take seconds.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from avl.ui import address, hosting, shutdown, uploads
from avl.ui.progress import Progress

if TYPE_CHECKING:
    from avl.ui.front import Front
    from avl.ui.limits import Limits
    from avl.ui.page import Page


def serve(
    name: str = "tiny",
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    device_map: str | None = None,
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

    The port answers from the first moment on: ``/healthz`` with 503 and what is loading, ``/`` with a page that says so and becomes the
    real one. A start that fails is one sentence in both, for as long as somebody watches, some seconds at most.

    Args:
        name: of the model, as for ``avl.load``.
        revision: branch, tag or commit of a Hub model.
        device: as for ``avl.load``.
        dtype: as for ``avl.load``.
        device_map: as for ``avl.load``.
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
    zero_gpu = hosting.zero_gpu()
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")  # Gradio tells the last ones' times over after every call
    if trusted_proxies is not None:
        os.environ["FORWARDED_ALLOW_IPS"] = address.check_proxies(trusted_proxies)  # read by uvicorn
    elif os.environ.get("SPACE_ID"):
        os.environ.setdefault("FORWARDED_ALLOW_IPS", address.PRIVATE)  # where a Space's proxy is
    progress = Progress(_shown(name))
    try:
        with shutdown.Signals() as signals, contextlib.ExitStack() as end:
            front, host, port = _front(allowed_hosts, host, port, share, progress)
            end.callback(front.stop)
            folder = uploads.make_folder()  # before Gradio is imported, which makes folders in it
            end.callback(uploads.remove_folder, folder)

            def work() -> Page:
                from avl.ui import starting

                model = {"revision": revision, "device": device, "dtype": dtype, "device_map": device_map}
                return starting.build(name, model, zero_gpu, limits, metrics, log_json, folder, progress)

            built = _watched(work, front, name, apart=zero_gpu is None)
            signals.listening()  # before the page answers: Gradio is busy for a while after it does
            try:
                _listen(built, front, allowed_hosts, host, port, share)
                signals.wait()
            finally:
                ended = shutdown.shut_down(built)
    except SystemExit:
        shutdown.leave(ended=False)  # a signal while the model loads: its thread cannot be stopped, Python's own end would wait or abort
        raise
    shutdown.leave(ended and not zero_gpu)  # whose library's threads would wait for its processes, and these for ever


def _front(hosts: Sequence[str] | None, host: str | None, port: int | None, share: bool, progress: Progress) -> tuple[Front, str, int]:
    """Listen, and answer for what loads."""
    try:
        from avl.ui import front, security
    except ModuleNotFoundError as error:
        raise absent(error) from None
    named = host or os.environ.get("GRADIO_SERVER_NAME")
    names = security.host_names(hosts, named, share)
    host, port, sockets = address.listen(host, port)
    print(f"Loading {progress.model}. {front.own_address(host, port)} answers from now on, and says how far it is.", flush=True)
    try:
        return front.Front(sockets, names, progress), host, port
    except BaseException:
        for one in sockets:
            one.close()
        raise


def absent(error: ModuleNotFoundError) -> Exception:
    """Return what to tell where a package of the extra ``page`` is missing; the error itself where another one is."""
    name = (error.name or "").partition(".")[0]
    if name not in ("gradio", "plotly", "prometheus_client", "uvicorn", "starlette"):
        return error
    return OSError(
        f"the page needs {name}, which is not installed: install this package with its extra, pip install '.[page]' in a "
        "checkout or pip install 'PATH_OF_THE_WHEEL[page]'"
    )


def _watched(work: Callable[[], Page], front: Front, name: str, apart: bool) -> Page:
    """Do the work; where it fails, tell those who watch why.

    Args:
        work: builds the page.
        front: who tells.
        name: of the model, as it was given.
        apart: in a thread of its own, so that a signal ends the process whatever the work waits for. On ZeroGPU, whose library keeps its
            stand-in for CUDA in one thread, in this one.
    """
    try:
        return _in_thread(work) if apart else work()
    except Exception as error:
        sentence = (str(error).splitlines() or [type(error).__name__])[0]
        front.fail(sentence.replace(name, _shown(name)))
        raise


def _shown(name: str) -> str:
    """Return a model's name for visitors: without the server's folders."""
    return Path(name).name if Path(name).is_dir() or Path(name).is_absolute() else name


def _in_thread(work: Callable[[], Page]) -> Page:
    done: Future[Page] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="avl-start", daemon=True).start()
    return done.result()


def _listen(built: Page, front: Front, hosts: Sequence[str] | None, host: str, port: int, share: bool) -> None:
    from avl.ui.front import gradio_on
    from avl.ui.starting import starting

    with starting(f"listen on {host}, port {port}"), gradio_on(front, host, port):
        built.launch(hosts, server_name=host, server_port=port, share=share, prevent_thread_lock=True)
