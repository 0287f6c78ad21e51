"""The oracle's policies (oracle.py) on any family: transformers' own loop and cache in float64, with a mask in place of every eviction.

Only the attention function is ours: it keeps nothing back from the cache, and hides from each query what the policy's rule does not store
or read. Positions, masks, biases, norms, scaling and what is added between layers are the model's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import oracle
import torch
from oracle import Full, Layer, Row, Run, Sets, members
from transformers import AttentionInterface, DynamicCache
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from avl.models.families import describe, family_of, language_model

NAME = "masking_oracle"
_running: list[_Rule] = []


class _Rule:
    """What one row's run under a policy's rule stores and reads, layer by layer."""

    def __init__(self, row: Row, rule: Full, limit: int, layers: int):
        self.row, self.rule, self.limit, self.depth = row, rule, limit, layers
        self.t = self.new = 0  # new: tokens of a later turn's first pass, while that runs
        self.alive = list(range(row.length))
        self.scores: list[torch.Tensor] = []
        self.layers: list[Layer] = []
        self.snapshots: list[Sets] = []

    def visible(self, index: int, given: torch.Tensor | None, heads: int, length: int) -> torch.Tensor:
        """Who sees whom in this layer: bool ``[G, T, L]``."""
        row, rule = self.row, self.rule
        if self.t or self.new:
            layer, more = self.layers[index], self.new or 1
            layer.stored = torch.cat([layer.stored, layer.stored.new_ones(heads, more)], 1)
            layer.core = torch.cat([layer.core, layer.core.new_zeros(more)])
            layer.mass = torch.cat([layer.mass, layer.mass.new_zeros(heads, more)], 1)
            if self.new:
                self._prune(index)
                layer.stored[:, length - self.new :] = self.is_alive[length - self.new :]
                layer.core |= row.is_image & self.is_alive
                seen = torch.arange(length) <= torch.arange(length - self.new, length)[:, None]
                if given is not None:
                    seen = given[0, 0, :, :length] == 0
                return layer.stored[:, None] & seen | seen.new_ones(seen.shape).tril(length - self.new).triu(length - self.new)
            seen = layer.stored & (row.is_text(length) | layer.core) if rule.reads_core(self.t) else layer.stored.clone()
            return seen[:, None]
        self._prune(index)
        whole = torch.ones(row.length, row.length, dtype=torch.bool)
        seen = whole.tril() if given is None else given[0, 0, :, : row.length] == 0
        return (seen & (self.is_alive | whole.tril() & whole.triu())).expand(heads, -1, -1)

    def _prune(self, index: int) -> None:
        self.alive = self.rule.prune(index, self.scores, self.alive, self.row)
        self.is_alive = torch.zeros(self.row.length, dtype=torch.bool)
        self.is_alive[self.alive] = True

    def grow(self, said: int, new: torch.Tensor, limit: int) -> None:
        """Begin a later turn, which feeds new tokens, of which ``new`` are image tokens."""
        self.row, self.limit, self.t, self.new = self.row.grown(said, new), limit, 0, len(new)
        self.alive, self.scores = list(range(self.row.length - len(new), self.row.length)), []

    def attended(self, index: int, weights: torch.Tensor, seen: torch.Tensor) -> None:
        """Let the rule choose by the weights ``[H, T, L]`` of this layer."""
        row, rule, heads = self.row, self.rule, len(seen)
        scores = oracle._mean(weights, heads, rule.per_head)
        if self.new:
            layer = self.layers[index]
            asking = scores[:, self.is_alive[-self.new :]]
            layer.mass += (asking if rule.queries is None else asking[:, -rule.queries :]).sum(1)
            self.scores.append(scores[0, -1])
            rule.go_on(layer, scores[0, -1], self.alive, row, self.limit)
            n_read = int(seen[:, -1].sum()) / heads
        elif self.t:
            layer = self.layers[index]
            layer.mass += scores[:, 0]
            rule.observe(layer, scores[0, 0], self.t, row, self.limit)
            n_read = int(seen.sum()) / heads
        else:
            asking = scores[:, self.is_alive] if rule.queries is None else scores[:, self.is_alive][:, -rule.queries :]
            mass = asking.sum(1) * self.is_alive
            nothing = torch.empty(0)
            stored, core = self.is_alive.expand(heads, -1).clone(), row.is_image & self.is_alive
            self.layers.append(Layer(nothing, nothing, stored, core, (index, self.depth), mass))
            self.scores.append(scores[0, -1])
            layer = self.layers[index]
            rule.keep(layer, scores[0, -1], self.alive, row, self.limit)
            n_read = None
        layer.core &= layer.stored.any(0)
        union, image = layer.stored.any(0), torch.tensor(row.image, dtype=torch.int64)
        text = members(union & row.is_text(len(union)))
        n_stored = int(layer.stored.sum()) / heads
        self.snapshots.append(Sets(members(union[image]), members(layer.core[image]), text, n_stored, n_read))


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    (rule,) = _running
    heads, times = key.shape[1], query.shape[1] // key.shape[1]
    seen = rule.visible(module.layer_idx, mask, heads, key.shape[2])
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = query[0] @ key[0].repeat_interleave(times, 0).mT * scale
    weights = logits.masked_fill(~seen.repeat_interleave(times, 0), -torch.inf).softmax(-1)
    rule.attended(module.layer_idx, weights, seen)
    return (weights @ value[0].repeat_interleave(times, 0)).transpose(0, 1)[None], None


@torch.no_grad()
def run(
    model: Any,
    inputs: dict[str, torch.Tensor],
    rule: Full,
    limit: int,
    feed: Sequence[int],
    turns: Sequence[oracle.Turn] = (),
) -> Run:
    """Feed the tokens of ``feed`` after the prompt of one row, without padding; return logits and sets of every step, in float64.

    ``turns`` as in oracle.run.
    """
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    model = copy.deepcopy(model).double()
    if hasattr(language_model(model).config, "num_experts"):
        model.set_experts_implementation("eager")  # the grouped product knows no float64
    family, causal = family_of(model.config), family_of(model.config).causal(model)
    language_model(model).config._attn_implementation = NAME
    token = describe(model).image_token_id
    is_image = inputs["input_ids"][0] == (-1 if token is None else token)
    row = Row(torch.empty(0), is_image)
    state, record, cache = _Rule(row, rule, limit, describe(model).layers), Run(), DynamicCache()
    given = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    _running.append(state)
    try:
        logits = model(**given, past_key_values=cache, use_cache=True).logits[0, -1]
        ahead = torch.as_tensor(family.ahead(model, bool(is_image.any()))).reshape(-1)[:1]
        waiting = list(turns)
        said, grids = given["input_ids"][0].tolist(), [inputs.get("image_grid_thw")]
        while True:
            record.logits.append(logits)
            record.sets.append(state.snapshots)
            record.tokens.append(feed[len(record.tokens)])
            state.t, state.new, state.snapshots = state.t + 1, 0, []
            tokens = record.tokens[-1:]
            if state.t == state.limit:
                if not waiting:
                    return record
                new, following, *pictures = waiting.pop(0)
                tokens += new
                is_image = torch.tensor(tokens) == token if pictures else torch.zeros(len(tokens), dtype=torch.bool)
                state.grow(state.limit - 1, is_image, following)
            said += tokens
            end = len(said)
            where, more, runs = (ahead + torch.arange(end - len(tokens), end))[None], {}, causal
            if state.new and pictures:
                runs, more = model, {key: value.double() if value.is_floating_point() else value for key, value in pictures[0].items()}
                kinds = torch.zeros(1, end, dtype=torch.int64)
                kinds[0, state.row.image] = 1
                if hasattr(model.model, "get_rope_index"):
                    grids.append(pictures[0]["image_grid_thw"])
                    counted, _ = model.model.get_rope_index(torch.tensor([said]), kinds, image_grid_thw=torch.cat(grids))
                    where, ahead = counted[..., -len(tokens) :], counted.max() + 1 - end
                elif family.token_types is not None:
                    more[family.token_types] = kinds
            logits = runs(input_ids=torch.tensor([tokens]), position_ids=where, past_key_values=cache, **more).logits[0, -1]
    finally:
        _running.clear()
