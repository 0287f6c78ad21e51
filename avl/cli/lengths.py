"""``avl lengths``: attention and answers over length."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from avl._files import write_whole
from avl.cli.options import NONE, Source, chosen, grouped, policy_names, policy_spec
from avl.policies import parse_policy

OTHERS = ("h2o:keep=50", "snapkv:keep=50", "streamingllm:keep=50")
POLICIES = ("avl:S=45,C=30,K=3", "avl:S=45,C=30,K=3,P=90,T=60", "avl:S=45,C=30,K=3,P=90,T=60,spread=33", *OTHERS)
"""What is compared without --policies."""


def _spec(text: str) -> str:
    return text if text == NONE else policy_spec(text)


@grouped
def lengths(
    source: Source,
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE...", help="one picture, or several. Default: the bundled scene")] = None,
    question: Annotated[str, typer.Option(help="a question about them")] = "Describe this image in detail.",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            help="tokens of the answer, whose end is put off until then. Default: 2048, or what the model's context leaves", min=33
        ),
    ] = None,
    p: Annotated[float, typer.Option("-p", help="percent of the image tokens whose agreement is counted")] = 50,
    policies: Annotated[
        list[str] | None,
        typer.Option(parser=_spec, metavar="POLICY...|none", help=f"{policy_names()}; with parameters as written: avl:S=45,C=30"),
    ] = None,
    documents: Annotated[int, typer.Option(metavar="N", help="also N held-out questions behind documents; the bundled model only")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="write lengths.json and lengths.png there")] = None,
) -> None:
    """Measure what becomes of attention and answers over length: continuity, decay of text, agreement of policies with full attention.

    Full attention answers with exactly so many tokens, its attention recorded. Its answer is then fed through every policy. The model's
    context must hold prompt and answer. A table, and one JSON line last.
    """
    from avl import charts
    from avl._paths import ASSETS
    from avl.engine.start import ready
    from avl.evaluation.lengths import agreement, attention, report
    from avl.evaluation.lengths import documents as behind
    from avl.evaluation.rows import today
    from avl.models.images import open_image
    from avl.models.inputs import prepare
    from avl.telemetry import machine_card

    if not 0 < p <= 100:
        raise ValueError(f"-p {p:g} is out of range: above 0 and at most 100 percent")
    if out is not None:
        charts.require_matplotlib()
    compared = [parse_policy(spec) for spec in (POLICIES if policies is None else chosen(policies))]
    if documents and source.model != "tiny":
        raise ValueError("--documents asks the bundled model's questions, which no other model knows: leave it out")
    pictures = [open_image(one) for one in (image or [ASSETS / "gallery" / "scene-9.png"])]
    model, processor = source.load()
    facts = ready(model, processor)
    inputs, _ = prepare(model, processor, pictures, question)
    limit = max_new_tokens or max(33, min(2048, facts.context - inputs["input_ids"].shape[1]))
    made: dict[str, Any] = {"machine": machine_card(), "date": today(), "model": source.model, "revision": source.revision}
    made |= {"device": model.device.type, "dtype": str(model.dtype).removeprefix("torch."), "pictures": len(pictures)}

    def tell(done: int) -> None:
        if sys.stderr.isatty() and done % 16 == 0:
            print(f"\r{done} of {limit} tokens", end="", file=sys.stderr)

    answer = attention.long_answer(model, inputs, limit - 1, p, tell=tell)
    made |= {"question": question, "prompt_tokens": inputs["input_ids"].shape[1], "max_new_tokens": limit}
    found = list(agreement.along(model, inputs, answer.tokens, compared, lambda label: print(label, "…", file=sys.stderr)))
    texts = behind.behind_documents(model, processor, compared[:3], samples=documents) if documents else []
    whole = report.record(made, answer, found, texts)
    print(report.table(whole))
    if out is not None:
        write_whole(out / "lengths.json", json_format.dumps(whole, indent=1) + "\n")
        report.plot(whole, out / "lengths.png")
    print(json_format.dumps(whole))
