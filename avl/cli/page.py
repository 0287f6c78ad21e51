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
) -> None:
    """Start the page: A-VL against other policies on LLaVA, live, at http://127.0.0.1:7860."""
    from avl.ui.serve import serve

    serve(
        source.model,
        revision=source.revision,
        device=source.device,
        dtype=source.dtype,
        host=host,
        port=port,
        share=share,
    )
