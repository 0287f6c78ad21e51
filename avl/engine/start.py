"""What a run begins with: the checks of what is asked, and the event that describes it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from avl._compat import commit_hash
from avl.attention.attachment import attach
from avl.cache.layout import Row
from avl.engine.decoder import refuse_offloaded
from avl.engine.request import GenerationRequest
from avl.engine.text import token_texts
from avl.models.families import Facts, describe, image_grids
from avl.models.loading import model_name
from avl.policies import Policy, PromptShape
from avl.policies.base import shown
from avl.policies.cost import pruned_from, step_cost
from avl.telemetry import machine_card
from avl.trace import Arm, Grid, Start, pack_bits


def ready(model: Any, processor: Any) -> Facts:
    """Check and attach a model that is to answer questions about pictures, and return its sizes.

    Raises:
        TypeError: the model's class is not supported or takes no pictures, or the processor is none.
        ValueError: its weights are not all in memory.
    """
    facts = describe(model)
    if facts.image_token_id is None:
        raise TypeError(
            f"{facts.name} takes no pictures, and avl.stream and avl.race answer questions about pictures: pass an avl.make_cache of its "
            "inputs to model.generate"
        )
    if getattr(processor, "tokenizer", None) is None or getattr(processor, "image_token", None) is None:
        raise TypeError(f"processor={shown(processor)} is not the processor of a LLaVA: pass the one that avl.load returned")
    refuse_offloaded(model)
    attach(model)
    return facts


def make_arm(policy: Policy, label: str, implementation: str, shape: PromptShape, **more: Any) -> Arm:
    """Return what a trace says of a policy before it runs; ``more``: the other fields of :class:`Arm`."""
    costs = [step_cost(policy, shape, t) for t in range(1, shape.max_new_tokens)]
    predicted = tuple((int(cost.stored), int(cost.read)) for cost in costs)
    covers = [policy.cover(layer, shape) for layer in range(shape.n_layers)]
    held = [pack_bits(cover.stored if cover else (), shape.n_image) for cover in covers]
    spread = tuple(held) if any(covers) else ()
    return Arm(label, policy.to_dict(), implementation, policy.title, pruned_from(policy, shape), predicted, spread, **more)


def make_start(
    model: Any,
    processor: Any,
    request: GenerationRequest,
    inputs: dict[str, Any],
    prompt: str,
    row: Row,
    ids: Sequence[int],
    arms: tuple[Arm, ...],
    *,
    single: bool = False,
    questions: tuple[str, ...] = (),
    grids: tuple[Grid, ...] | None = None,
) -> Start:
    """Return the first event of a run.

    Args:
        model: from ``avl.load``.
        processor: from ``avl.load``.
        request: what runs.
        inputs: of the pictures' prompt.
        prompt: its text; of a later turn, the text that is added.
        row: layout of the prompt, in a later turn of the first arm's.
        ids: its tokens.
        arms: the policies.
        single: whether the trace shows a single generation, not a race.
        questions: of the turns before.
        grids: of the image tokens; by default those of the pictures of one prompt.
    """
    facts, sizes = describe(model), [image.size for image in request.images]
    return Start(
        arms=arms,
        mode="single" if single else request.mode,
        question=request.question,
        prompt=prompt,
        model={
            "name": model_name(model),
            "class": facts.name,
            "revision": commit_hash(model.config),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "layers": facts.layers,
            "heads": facts.heads,
            "kv_heads": facts.kv_heads,
            "head_dim": facts.head_dim,
        },
        machine=machine_card(model.device),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        n_image=row.n_image,
        n_text=row.n_text,
        spans=row.spans,
        images=tuple(sizes),
        grids=image_grids(model.config, processor, sizes, inputs, row.n_image) if grids is None else grids,
        layers=facts.layers,
        token_bytes=facts.token_bytes(model.dtype.itemsize),
        batch=request.batch,
        limit=request.max_new_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        text=texts_of(processor, row, ids),
        turn=len(questions) + 1,
        questions=questions,
    )


def grids_of(model: Any, processor: Any, shown: Sequence[tuple[Sequence[Any], dict[str, Any], int]]) -> tuple[Grid, ...]:
    """Return the grids of the pictures that several turns brought; none where some are not known.

    Args:
        model: from ``avl.load``.
        processor: from ``avl.load``.
        shown: of every turn its pictures, what the processor made of them, and how many image tokens they are.
    """
    found: list[Grid] = []
    image = token = 0
    for images, inputs, count in shown:
        some = image_grids(model.config, processor, [one.size for one in images], inputs, count) if images else ()
        if images and not some:
            return ()
        found += [replace(grid, image=grid.image + image, first=grid.first + token) for grid in some]
        image, token = image + len(images), token + count
    return tuple(found)


def texts_of(processor: Any, row: Row, ids: Sequence[int]) -> tuple[str, ...]:
    """Return what the text tokens of a prompt ``ids`` say."""
    return token_texts(processor.tokenizer, [ids[position] for position in row.text])
