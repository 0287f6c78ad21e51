"""``avl page``, and ``python app.py`` in a checkout."""

from __future__ import annotations

from typing import Annotated

import typer

from avl.cli.options import Source, grouped


@grouped
def page(
    source: Source,
    host: Annotated[str | None, typer.Option(help="address to listen on; default: this machine only")] = None,
    port: Annotated[int | None, typer.Option(help="default: the first free one from 7860")] = None,
    share: Annotated[bool, typer.Option("--share", help="ask Gradio for a public link")] = False,
    allowed_hosts: Annotated[
        str | None, typer.Option(help="host names to answer for, by commas; default: all, or this machine's where only it can connect")
    ] = None,
    trusted_proxies: Annotated[
        str | None,
        typer.Option(help="proxies whose X-Forwarded-For names the visitor; default: this machine; on Spaces, private networks"),
    ] = None,
    max_waiting: Annotated[int, typer.Option(min=1, max=1000, help="runs that wait, of one visitor at most 2")] = 20,
    max_tokens_per_run: Annotated[int, typer.Option(min=1, help="arms × batch × new tokens × repeats")] = 1 << 17,
    max_seconds: Annotated[float, typer.Option(min=1, help="time of one run")] = 1800,
    stuck_after: Annotated[float, typer.Option(min=1, help="seconds without progress until /healthz says stuck")] = 300,
    upload_mb: Annotated[int, typer.Option(min=100, help="space for uploads on disk; the oldest are deleted")] = 1024,
    metrics: Annotated[bool, typer.Option(help="answer /metrics, for Prometheus")] = True,
    log_json: Annotated[bool, typer.Option("--log-json", help="log every run, one JSON object a line")] = False,
) -> None:
    """Start the page: A-VL against other policies on one model, live, at http://127.0.0.1:7860."""
    from avl.ui.limits import MB, Limits
    from avl.ui.serve import serve

    serve(
        source.model,
        revision=source.revision,
        device=source.device,
        dtype=source.dtype,
        device_map=source.device_map,
        host=host,
        port=port,
        share=share,
        allowed_hosts=None if allowed_hosts is None else [name.strip() for name in allowed_hosts.split(",") if name.strip()],
        trusted_proxies=trusted_proxies,
        limits=Limits(
            waiting=max_waiting,
            tokens=max_tokens_per_run,
            run_seconds=max_seconds,
            stuck_seconds=stuck_after,
            disk_bytes=upload_mb * MB,
        ),
        metrics=metrics,
        log_json=log_json,
    )
