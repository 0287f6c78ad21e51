"""Run the library and write down what it did: logits, tokens and, after every step, the counts and sets that the cache reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import oracle
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

import avl
from avl import trace
from avl.engine.cuda_graphs import make_decoder
from avl.models.families import describe


@dataclass(frozen=True)
class State:
    """What the cache reports after a step. ``sets[row][layer]``; a layer's ``n_stored``/``n_read`` add up all rows, as the cache does."""

    stored: list[int]
    read: list[int]
    stored_bytes: int
    read_bytes: int
    sets: list[list[oracle.Sets]]


@dataclass
class Observed:
    """``logits[t] [B, V]`` chose token t; ``states[t]``, t = 0: after prefill; ``tokens [B, T]``."""

    cache: Any
    states: list[State] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)


class _Watch(LogitsProcessor):
    """Called by generate after every forward pass: records, and forces the next token where one is given."""

    def __init__(self, observed: Observed, n_rows: int, feed: Sequence[Sequence[int]] | None, sets: bool):
        self.observed, self.n_rows, self.feed, self.sets = observed, n_rows, feed, sets

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        t = len(self.observed.states)
        self.observed.states.append(snapshot(self.observed.cache, self.n_rows if self.sets else 0))
        if self.feed is None:
            return scores
        forced = torch.full_like(scores, -float("inf"))
        for row, tokens in enumerate(self.feed):
            forced[row, tokens[t]] = 0.0
        return forced


def snapshot(cache: Any, n_rows: int) -> State:
    sets = []
    for row in range(n_rows):
        layers = []
        for layer, (stored, core) in enumerate(cache.image_sets(row=row)):
            layers.append(oracle.Sets(list(stored), list(core), list(cache.text_positions(layer, row=row)), 0, None))
        sets.append(layers)
    return State(list(cache.stored_tokens), list(cache.read_tokens), cache.stored_bytes, cache.read_bytes, sets)


def generate(
    model: Any,
    inputs: Any,
    policy: Any,
    limit: int,
    feed: Sequence[Sequence[int]] | None = None,
    sets: bool = True,
    **options: Any,
) -> Observed:
    """``model.generate`` with a cache of ours, observed at every step; ``feed``: per row, the tokens to feed whatever the logits say."""
    observed = Observed(avl.make_cache(model, inputs, policy, max_new_tokens=limit))
    options = {"do_sample": False, **options}
    out = model.generate(
        **inputs,
        past_key_values=observed.cache,
        max_new_tokens=limit,
        logits_processor=LogitsProcessorList([_Watch(observed, len(inputs["input_ids"]), feed, sets)]),
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    observed.logits = list(out.logits)
    observed.tokens = out.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    return observed


def converse(
    model: Any, inputs: Any, policy: Any, limit: int, feed: Sequence[int], turns: Sequence[oracle.Turn], sets: bool = True
) -> Observed:
    """The engine's decoder over several turns of one row, observed at every pass; ``turns`` as in oracle.run, ``feed`` over all of them."""
    image_token = describe(model).image_token_id
    observed = Observed(avl.make_cache(model, inputs, policy, max_new_tokens=limit))
    cache, tokens = observed.cache, iter(feed)

    def note(logits: Tensor) -> int:
        observed.states.append(snapshot(cache, int(sets)))
        observed.logits.append(logits)
        return next(tokens)

    decoder = make_decoder(model, cache)
    token = note(decoder.prefill(dict(inputs)))
    for new, following, *given in [((), limit), *turns]:
        if new:
            image = tuple(place for place, one in enumerate(new, 1) if given and one == image_token)
            cache.extend([1 + len(new)], following, image=[image])
            decoder = make_decoder(model, cache)
            token = note(decoder.extend([[token, *new]], pictures=given or None))
        for _ in range(following - 1):
            token = note(decoder.step(torch.tensor([token])))
    return observed


def timeless(events) -> list:
    """Events without their clocks and readings."""
    kept = []
    for event in events:
        if isinstance(event, trace.Reading):
            continue
        clocks = {name: 0.0 for name in ("ms", "clock_ms", "ttft_ms", "median_ms") if hasattr(event, name)}
        if isinstance(event, trace.Start):
            clocks = {"date": "", "machine": {}}
        kept.append(replace(event, **clocks))
    return kept


def words(seed: int, n_rows: int, length: int) -> list[list[int]]:
    """Random ordinary words to feed: ``[rows][length]``."""
    from random_models import SPECIAL, VOCAB

    return torch.randint(len(SPECIAL), VOCAB, (n_rows, length), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_within(actual: Tensor, stick: Tensor, plain: Tensor, dtype: torch.dtype, reductions: Sequence[int]) -> None:
    """The error of ``actual`` is at most that of ``plain`` (a plain implementation in the same precision) plus rounding: at each step of
    ``[T, V]``, or of ``[n]`` as a whole.

    ``stick`` is the float64 result. Rounding: eps(dtype) plus sqrt(n) * eps(float32) for each reduction over n numbers, of the mean; of the
    maximum the first term counts once per reduction.
    """
    assert torch.isfinite(actual).all()
    stick = stick.double()
    error, allowed = (actual.double() - stick).abs(), (plain.double() - stick).abs()
    eps = torch.finfo(dtype).eps
    sums = sum(n**0.5 for n in reductions) * torch.finfo(torch.float32).eps
    limits = {
        "mean": allowed.mean(-1) + (eps + sums) * stick.abs().mean(-1),
        "largest": allowed.amax(-1) + (eps * len(reductions) + sums) * stick.abs().amax(-1),
    }
    for kind, found in (("mean", error.mean(-1)), ("largest", error.amax(-1))):
        if (found > limits[kind]).any():
            step = int((found / limits[kind]).argmax())
            found, limit = float(found.reshape(-1)[step]), float(limits[kind].reshape(-1)[step])
            raise AssertionError(f"{kind} error {found:.3g}, allowed {limit:.3g}, at step {step}")


def reductions(model: Any, length: int) -> list[int]:
    """Lengths of the sums between the embeddings and the logits: per layer q/k/v, scores, attention, output, MLP in, MLP out; the head."""
    config = model.config.text_config
    layer = [config.hidden_size, config.head_dim, length, config.hidden_size, config.hidden_size, config.intermediate_size]
    return layer * config.num_hidden_layers + [config.hidden_size]
