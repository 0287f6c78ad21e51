"""The executable specification of A-VL and of the policies it is compared with, for one row: plain torch, float64, nothing evicted.

The oracle keeps the key and value of every token of the sequence in every layer for ever, and simulates a policy by what it masks::

    prompt, layer by layer                              layer 0, 1, 2, …
        before layer 2, P:  image tokens outside the best P % of layer 1's scores stop being queries and keys
        x        <- layer(x)                            exact causal attention over what is alive
        score    <- last prompt token's attention       mean over query heads
        A        <- column sums of that mean            text accumulates, every prompt query counts
        stored   <- text, and the best S % of N image tokens by score
        core     <- the best C % of N
        stored   <- less the text with the smallest A until W are left     (T)
    decode step t = 1, 2, …
        visible  <- stored text + the new token + (update step: stored image tokens; core step: core)
        x        <- layer(x, -inf outside visible)
        A        += score
        core     <- the best C % of N by score          update step only; read from step t + 1 on
        stored   <- less one text entry if more than W
    a later turn's new tokens, pictures or not, in one pass; M: the new image tokens
        before layer 2, P:  new image tokens outside the best P % of M by layer 1's scores stop being queries and keys
        visible  <- all that is stored + the new tokens up to the one that asks
        A        += column sums of the scores
        stored   <- all that was, new text, and the best S % of M by the last one's score
        core     <- the best C % of N of what is stored, by the last one's score; N: of the whole conversation
        stored   <- less the text with the smallest A until W are left     (T; text and W of the whole conversation)
    its decode steps: as above, t = 1, 2, …

"Recent" tokens are counted among all tokens of the sequence, evicted ones included.

"The best" always means: the largest score, of equal scores the lower position. Positions count from the row's first real token (padding
is cut off before anything runs). Image features are taken from the model itself, in its own precision: the vision tower is not the subject.

With ``dtype=float64`` this is the measuring stick. The same code in the model's own dtype is the allowance a test grants (style: the
error of a plain implementation in that precision). ``imposed`` replaces every choice by the given sets, so that logits can be compared
in precisions so low that two scores may change places.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

INF = float("inf")
Turn = tuple[Sequence[int], int] | tuple[Sequence[int], int, Any]


def share(percent: float, n: int) -> int:
    """ceil(percent * n / 100) without rounding: the percentage is taken as the decimal number that was written."""
    exact = Fraction(str(percent)) * n / 100
    return -(-exact.numerator // exact.denominator)


def best(score: Tensor, among: Sequence[int], count: int, first: Sequence[int] = ()) -> list[int]:
    """The ``count`` positions of ``among`` with the largest score, of equal scores the lower position, ``first`` ones first; sorted."""
    values = score.tolist()
    chosen = [j for j in first if j in among][:count]
    others = sorted(set(among) - set(chosen), key=lambda j: (-values[j], j))
    return sorted(chosen + others[: count - len(chosen)])


def lattice(n: int, percent: float, layer: int) -> list[int]:
    """``percent`` of ``n`` tokens: those whose multiple of the golden ratio, moved by the layer, has the smallest fractional part."""
    place = {j: (2_654_435_769 * j + 2_654_435_769 + 3_242_174_889 * layer) & 0xFFFFFFFF for j in range(n)}
    return sorted(place, key=place.__getitem__)[: share(percent, n)]


def members(mask: Tensor) -> list[int]:
    """The positions at which a mask is True."""
    return mask.nonzero().flatten().tolist()


# ---------------------------------------------------------------------------------------------------------------- input and output


@dataclass(frozen=True)
class Row:
    """One row of a batch without its padding: embeddings ``[L, D]`` in the model's dtype, and which positions hold an image feature."""

    embeds: Tensor
    is_image: Tensor
    begins: tuple[int, ...] = (0,)
    """Where the first pass of every turn begins."""

    def grown(self, said: int, new: Tensor) -> Row:
        """The row as a later turn sees it: ``said`` text tokens of the answer's steps, then new ones, of which ``new`` are image tokens."""
        whole = torch.cat([self.is_image, torch.zeros(said, dtype=torch.bool), new])
        return Row(self.embeds, whole, (*self.begins, len(whole) - len(new)))

    @cached_property
    def length(self) -> int:
        return len(self.is_image)

    @cached_property
    def image(self) -> list[int]:
        return members(self.is_image)

    @cached_property
    def pictures(self) -> list[list[int]]:
        """Positions of the image tokens that every turn brought."""
        ends = (*self.begins[1:], self.length)
        return [[j for j in self.image if first <= j < end] for first, end in zip(self.begins, ends, strict=True)]

    @cached_property
    def n_image(self) -> int:
        return len(self.image)

    @cached_property
    def n_text(self) -> int:
        return self.length - self.n_image

    def is_text(self, total: int) -> Tensor:
        """Which of the first ``total`` positions hold text: what is no image feature, and every generated token."""
        generated = torch.ones(total - self.length, dtype=torch.bool)
        return torch.cat([~self.is_image, generated])

    def less(self, positions: Sequence[int], retained: Sequence[int]) -> list[int]:
        """``positions`` without the image tokens of the last turn that are not ``retained``."""
        gone = set(self.pictures[-1]) - set(retained)
        return [j for j in positions if j not in gone]

    def stay(self, score: Tensor, count: int, first: Sequence[int] = ()) -> list[int]:
        """``count`` of the last turn's image tokens that stay in the hidden states.

        The last position, which asks, is one of them where it is an image token.
        """
        new = self.pictures[-1]
        asking = [j for j in new if j == self.length - 1]
        return sorted(best(score, [j for j in new if j not in asking], count - len(asking), first) + asking)


def rows(model: Any, inputs: Any) -> list[Row]:
    """The rows of a processor's output, embedded by the model."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    embeds, is_image = embedded(model, ids, inputs)
    return [Row(embeds[b][mask[b]], is_image[b][mask[b]]) for b in range(len(ids))]


def embedded(model: Any, ids: Tensor, inputs: Any) -> tuple[Tensor, Tensor]:
    """Embeddings ``[B, L, D]`` of tokens, image features in their places, and which places those are."""
    pictures = {key: inputs[key] for key in ("pixel_values", "image_sizes") if key in inputs}
    is_image = ids == model.config.image_token_id
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
        if pictures:
            features = torch.cat(list(model.get_image_features(**pictures).pooler_output), dim=0)
            embeds = embeds.masked_scatter(is_image[..., None], features.to(embeds.dtype))
    return embeds, is_image


@dataclass(frozen=True)
class Sets:
    """One layer after a step. ``stored``, ``core``: image-token indices 0..N-1 (core: what the next core step reads). ``text``: positions.

    Where heads differ (H2O) the sets are unions; the counts are means over the KV heads. ``n_read``: entries this step attended to, the
    new token included, before eviction; None after prefill.
    """

    stored: list[int]
    core: list[int]
    text: list[int]
    n_stored: float
    n_read: float | None


@dataclass
class Run:
    """``logits[t]`` chose token t; ``tokens[t]`` is fed at step t + 1 (the last one never is); ``sets[t][layer]``, t = 0: prefill."""

    logits: list[Tensor] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    sets: list[list[Sets]] = field(default_factory=list)


@dataclass
class Layer:
    """Key and value ``[G, L, head_dim]`` of every token so far; what a step may see of them; the accumulated scores."""

    key: Tensor
    value: Tensor
    stored: Tensor  # [G, L] bool
    core: Tensor  # [L] bool, image tokens only
    depth: tuple[int, int]  # number of this layer, and of all
    mass: Tensor  # [G, L] accumulated scores (all rows alike where the policy takes the mean over all heads)


# ---------------------------------------------------------------------------------------------------------------- the policies


class Full:
    """Nothing is evicted, everything is read. The other policies override what they change."""

    per_head = False
    """Scores are means over all query heads (False), or over the query heads of each KV head (True)."""

    queries: int | None = None
    """Only the last so many prompt queries accumulate; None: all of them."""

    prunes_before: int | None = None
    """The layer before which image tokens leave the prompt."""

    def prune(self, layer: int, scores: list[Tensor], alive: list[int], row: Row) -> list[int]:
        """Positions that enter ``layer``; ``scores``: the last prompt token's, of the layers before."""
        return alive

    def keep(self, layer: Layer, score: Tensor, alive: list[int], row: Row, limit: int) -> None:
        """After the prompt went through one layer."""

    def go_on(self, layer: Layer, score: Tensor, alive: list[int], row: Row, limit: int) -> None:
        """After the new tokens of a later turn went through one layer; ``score`` is the last one's."""

    def reads_core(self, t: int) -> bool:
        """Whether decode step t reads core only."""
        return False

    def observe(self, layer: Layer, score: Tensor, t: int, row: Row, limit: int) -> None:
        """After decode step t of one layer; ``layer.mass`` already includes this step."""


class AVL(Full):
    def __init__(self, S, C=None, K=3, P=None, T=None, update="every", spread=None):
        self.S, self.C, self.K, self.P, self.T, self.update, self.spread = S, C, K, P, T, update, spread
        self.prunes_before = None if P is None else 2

    def prune(self, layer: int, scores: list[Tensor], alive: list[int], row: Row) -> list[int]:
        if layer != self.prunes_before:
            return alive
        pictures = row.pictures[-1]
        return row.less(alive, row.stay(scores[1], share(self.P, len(pictures)), self._lattice(pictures, 1)))

    def _lattice(self, pictures: list[int], layer: int, part: int = 1) -> list[int]:
        """Those of the image tokens of one turn that are a layer's spread tokens, or the first half of these (``part`` 2)."""
        return [] if self.spread is None else [pictures[j] for j in lattice(len(pictures), self.spread / part, layer)]

    def keep(self, layer: Layer, score: Tensor, alive: list[int], row: Row, limit: int) -> None:
        pictures = row.pictures[-1]
        held = [j for j in pictures if j in alive]
        layer.stored[:, held] = False
        layer.stored[:, best(score, held, share(self.S, len(pictures)), self._lattice(pictures, layer.depth[0]))] = True
        self._choose_core(layer, score, row)
        self._evict_text(layer, row, limit)

    go_on = keep
    """The new pictures are chosen from as those of a first prompt; core and text, of all that is there."""

    def reads_core(self, t: int) -> bool:
        if self.C is None:
            return False
        return t % (self.K if self.update == "every" else self.K + 1) != 0

    def observe(self, layer: Layer, score: Tensor, t: int, row: Row, limit: int) -> None:
        if not self.reads_core(t):
            self._choose_core(layer, score, row)
        self._evict_text(layer, row, limit)

    def _choose_core(self, layer: Layer, score: Tensor, row: Row) -> None:
        secondary = members(layer.stored[0, : row.length] & row.is_image)
        count = len(secondary) if self.C is None else share(self.C, row.n_image)
        layer.core[:] = False
        always = [j for pictures in row.pictures for j in self._lattice(pictures, layer.depth[0], 2)]
        layer.core[best(score, secondary, count, always)] = True

    def _evict_text(self, layer: Layer, row: Row, limit: int) -> None:
        if self.T is None:
            return
        window = share(self.T, row.n_text + limit)
        is_text = row.is_text(layer.stored.shape[1])
        recent = set(members(is_text)[-((window + 1) // 2) :])
        text = members(layer.stored[0] & is_text)
        mass = layer.mass[0].tolist()
        while len(text) > window:
            victim = min((j for j in text if j not in recent), key=lambda j: (mass[j], j))
            text.remove(victim)
            layer.stored[:, victim] = False


class FastV(Full):
    def __init__(self, layer: int = 2, keep: float = 50):
        self.prunes_before, self.share = layer, keep

    def prune(self, layer: int, scores: list[Tensor], alive: list[int], row: Row) -> list[int]:
        if layer != self.prunes_before:
            return alive
        return row.less(alive, row.stay(scores[layer - 1], share(self.share, len(row.pictures[-1]))))


class StreamingLLM(Full):
    def __init__(self, keep: float = 50, sinks: int = 4):
        self.share, self.sinks = keep, sinks

    def keep(self, layer: Layer, score: Tensor, alive: list[int], row: Row, limit: int) -> None:
        self._slide(layer, row)

    def observe(self, layer: Layer, score: Tensor, t: int, row: Row, limit: int) -> None:
        self._slide(layer, row)

    def go_on(self, layer: Layer, score: Tensor, alive: list[int], row: Row, limit: int) -> None:
        self._slide(layer, row)

    def _slide(self, layer: Layer, row: Row) -> None:
        budget = share(self.share, row.length)
        held = members(layer.stored[0])
        for victim in held[self.sinks : max(self.sinks, self.sinks + len(held) - budget)]:
            layer.stored[:, victim] = False


class H2O(Full):
    per_head = True

    def __init__(self, keep: float = 50, recent: float = 75):
        self.share, self.recent = keep, recent

    def keep(self, layer: Layer, score: Tensor, alive: list[int], row: Row, limit: int) -> None:
        self._evict(layer, row)

    def observe(self, layer: Layer, score: Tensor, t: int, row: Row, limit: int) -> None:
        self._evict(layer, row)

    def go_on(self, layer: Layer, score: Tensor, alive: list[int], row: Row, limit: int) -> None:
        self._evict(layer, row)

    def _evict(self, layer: Layer, row: Row) -> None:
        budget = share(self.share, row.length)
        older = layer.stored.shape[1] - share(self.recent, budget)
        for head, mass in zip(layer.stored, layer.mass.tolist(), strict=True):
            held = members(head)
            while len(held) > budget:
                victim = min((j for j in held if j < older), key=lambda j: (mass[j], j))
                held.remove(victim)
                head[victim] = False


class SnapKV(Full):
    per_head = True

    def __init__(self, keep: float = 50, window: int = 32, pool: int = 7):
        self.share, self.queries, self.pool = keep, window, pool

    def budget(self, depth: tuple[int, int], length: int) -> int:
        return share(self.share, length)

    def keep(self, layer: Layer, score: Tensor, alive: list[int], row: Row, limit: int) -> None:
        first = row.begins[-1]
        budget = self.budget(layer.depth, row.length - first)
        earlier, half = max(first, row.length - self.queries), self.pool // 2
        for head, mass in zip(layer.stored, layer.mass.tolist(), strict=True):
            pooled = {j: max(mass[max(first, j - half) : min(earlier, j + half + 1)]) for j in range(first, earlier)}
            ranked = sorted(pooled, key=lambda j: (-pooled[j], j))
            newest = list(range(earlier, row.length))[-budget:]
            head[first:] = False
            head[newest + ranked[: budget - len(newest)]] = True

    def go_on(self, layer: Layer, score: Tensor, alive: list[int], row: Row, limit: int) -> None:
        if row.pictures[-1]:
            self.keep(layer, score, alive, row, limit)


class PyramidKV(SnapKV):
    def __init__(self, keep: float = 50, window: int = 32, pool: int = 7, beta: int = 20):
        super().__init__(keep, window, pool)
        self.beta = beta

    def budget(self, depth: tuple[int, int], length: int) -> int:
        number, layers = depth
        mean = share(self.share, length)
        lowest = Fraction(mean, self.beta)
        for bound in (Fraction(self.queries), Fraction(2 * mean - length)):  # the window stays, and the first layer has but the prompt
            lowest = max(lowest, bound)
        lowest = min(lowest, Fraction(mean))
        line = [2 * mean - lowest - i * (2 * mean - 2 * lowest) / (layers - 1) for i in range(layers)]
        whole = [value.numerator // value.denominator for value in line]
        by_remainder = sorted(range(layers), key=lambda i: (whole[i] - line[i], i))
        for i in by_remainder[: mean * layers - sum(whole)]:
            whole[i] += 1
        return whole[number]


# ---------------------------------------------------------------------------------------------------------------- the decoder


class Decoder:
    """The text model's layers, one row, in ``dtype``, from the model's own weights; softmax and normalization never below float32."""

    def __init__(self, model: Any, dtype: torch.dtype):
        self.text = model.model.language_model
        self.head = model.lm_head.weight
        self.embedding = model.get_input_embeddings().weight
        self.dtype = dtype
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32

    def linear(self, x: Tensor, module: Any) -> Tensor:
        bias = None if module.bias is None else module.bias.to(self.dtype)
        return torch.nn.functional.linear(x, module.weight.to(self.dtype), bias)

    def norm(self, x: Tensor, module: Any) -> Tensor:
        wide = x.to(self.wide)
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + module.variance_epsilon)
        return module.weight.to(self.dtype) * wide.to(self.dtype)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """RoPE of ``x [heads, T, head_dim]``: pairs (i, i + head_dim / 2) turn by position * frequency i."""
        rotary = self.text.rotary_emb
        angle = positions.to(self.wide)[:, None] * rotary.inv_freq.to(self.wide)
        cos, sin = ((f * rotary.attention_scaling).to(self.dtype) for f in (angle.cos(), angle.sin()))
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def project(self, x: Tensor, block: Any, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query ``[H, T, head_dim]``, key and value ``[G, T, head_dim]`` after RoPE."""
        attention = block.self_attn
        h = self.norm(x, block.input_layernorm)
        q, k, v = (
            self.linear(h, projection).unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        return self.rotate(q, positions), self.rotate(k, positions), v

    def attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Explicit softmax. ``visible [G, T, L]``. Returns the output ``[T, H * head_dim]`` and the weights ``[H, T, L]``."""
        group = len(query) // len(key)
        logits = query @ key.repeat_interleave(group, 0).mT * query.shape[-1] ** -0.5
        logits = logits.to(self.wide).masked_fill(~visible.repeat_interleave(group, 0), -INF)
        weights = torch.softmax(logits, dim=-1)
        out = weights.to(self.dtype) @ value.repeat_interleave(group, 0)
        return out.transpose(0, 1).flatten(1), weights

    def finish(self, x: Tensor, attended: Tensor, block: Any) -> Tensor:
        """What follows attention in a block: output projection, MLP, both residual."""
        x = x + self.linear(attended, block.self_attn.o_proj)
        h, mlp = self.norm(x, block.post_attention_layernorm), block.mlp
        return x + self.linear(torch.nn.functional.silu(self.linear(h, mlp.gate_proj)) * self.linear(h, mlp.up_proj), mlp.down_proj)

    def logits(self, x: Tensor) -> Tensor:
        return self.norm(x, self.text.norm) @ self.head.to(self.dtype).T


def _mean(weights: Tensor, kv_heads: int, per_head: bool) -> Tensor:
    """Weights ``[H, T, L]`` -> scores ``[G, T, L]``: mean over the query heads of each KV head, or over all (then G equal rows)."""
    if per_head:
        return weights.unflatten(0, (kv_heads, -1)).mean(1)
    return weights.mean(0, keepdim=True).expand(kv_heads, -1, -1)


@torch.no_grad()
def run(
    model: Any,
    row: Row,
    policy: Full,
    limit: int,
    feed: Iterable[int] | None = None,
    dtype: torch.dtype = torch.float64,
    imposed: list[list[Sets]] | None = None,
    turns: Sequence[Turn] = (),
) -> Run:
    """Generate ``limit`` tokens: greedy, or feeding the tokens of ``feed`` whatever the logits say.

    ``turns``: of every later turn, the new tokens behind the unfed last one, its limit, and the inputs of its pictures where it brings
    some; passes, tokens and ``feed`` go on.

    ``imposed[t][layer]`` (``stored``, ``core`` and ``text`` are used) takes the place of the policy's choices; ``policy`` still says which
    steps read core only. With P or FastV the layer must store all it was given (S >= P): what left the hidden states is read off it.
    """
    decoder, record = Decoder(model, dtype), Run()
    image = torch.tensor(row.image, dtype=torch.int64)
    layers: list[Layer] = []
    fed = None if feed is None else list(feed)

    def impose(t: int, index: int) -> None:
        if imposed is None:
            return
        sets, layer = imposed[t][index], layers[index]
        layer.stored[:] = False
        layer.stored[:, image[sets.stored]] = True
        layer.stored[:, sets.text] = True
        layer.core[:] = False
        layer.core[image[sets.core]] = True

    def snapshot(index: int, n_read: float | None) -> Sets:
        layer = layers[index]
        union = layer.stored.any(0)
        text = members(union & row.is_text(len(union)))
        n_stored = int(layer.stored.sum()) / len(layer.stored)
        return Sets(members(union[image]), members(layer.core[image]), text, n_stored, n_read)

    def append(layer: Layer, key: Tensor, value: Tensor) -> None:
        heads, new = key.shape[:2]
        layer.key, layer.value = torch.cat([layer.key, key], 1), torch.cat([layer.value, value], 1)
        layer.stored = torch.cat([layer.stored, layer.stored.new_ones(heads, new)], 1)
        layer.core = torch.cat([layer.core, layer.core.new_zeros(new)])
        layer.mass = torch.cat([layer.mass, layer.mass.new_zeros(heads, new)], 1)

    def emit(x: Tensor, snapshots: list[Sets]) -> int:
        record.logits.append(decoder.logits(x[-1]))
        record.sets.append(snapshots)
        t = len(record.tokens)
        record.tokens.append(int(record.logits[-1].argmax()) if fed is None else fed[t])
        return record.tokens[-1]

    # the prompt
    x, positions = row.embeds.to(dtype), torch.arange(row.length)
    alive, scores, snapshots = positions.tolist(), [], []
    for index, block in enumerate(decoder.text.layers):
        if imposed is None:
            alive = policy.prune(index, scores, alive, row)
        elif index == policy.prunes_before:
            alive = row.less(alive, [row.image[i] for i in imposed[0][index].stored])
        is_alive = torch.zeros(row.length, dtype=torch.bool)
        is_alive[alive] = True
        query, key, value = decoder.project(x, block, positions)
        causal = positions[:, None] >= positions[None, :]
        visible = causal & (is_alive | torch.eye(row.length, dtype=torch.bool))  # a dead query sees itself; nobody sees a dead query
        attended, weights = decoder.attend(query, key, value, visible.expand(len(key), -1, -1))
        score = _mean(weights, len(key), policy.per_head)
        asking = score[:, is_alive] if policy.queries is None else score[:, is_alive][:, -policy.queries :]
        mass = asking.sum(1) * is_alive
        depth = (index, len(decoder.text.layers))
        layers.append(Layer(key, value, is_alive.expand(len(key), -1).clone(), row.is_image & is_alive, depth, mass))
        scores.append(score[0, -1])
        policy.keep(layers[index], score[0, -1], alive, row, limit)
        layers[index].core &= layers[index].stored.any(0)
        impose(0, index)
        snapshots.append(snapshot(index, None))
        x = decoder.finish(x, attended, block)
    token = emit(x, snapshots)

    def answer(token: int, row: Row, limit: int) -> int:
        """One token at a time."""
        for t in range(1, limit):
            position = torch.tensor([row.length + t - 1])
            x = decoder.embedding[token].to(dtype)[None]
            snapshots = []
            for index, block in enumerate(decoder.text.layers):
                layer = layers[index]
                query, key, value = decoder.project(x, block, position)
                append(layer, key, value)
                visible = layer.stored & (row.is_text(row.length + t) | layer.core) if policy.reads_core(t) else layer.stored.clone()
                attended, weights = decoder.attend(query, layer.key, layer.value, visible[:, None])
                score = _mean(weights, len(key), policy.per_head)[:, 0]
                layer.mass += score
                n_read = int(visible.sum()) / len(key)
                policy.observe(layer, score[0], t, row, limit)
                layer.core &= layer.stored.any(0)
                impose(len(record.sets), index)
                snapshots.append(snapshot(index, n_read))
                x = decoder.finish(x, attended, block)
            token = emit(x, snapshots)
        return token

    token = answer(token, row, limit)
    for new, following, *given in turns:
        embeds, is_image = embedded(model, torch.tensor([[token, *new]]), given[0] if given else {})
        row = row.grown(limit - 1, is_image[0] & bool(given))
        limit, image = following, torch.tensor(row.image)
        positions = torch.arange(row.begins[-1], row.length)
        x, alive, scores, snapshots = embeds[0].to(dtype), positions.tolist(), [], []
        for index, block in enumerate(decoder.text.layers):
            layer = layers[index]
            if imposed is None:
                alive = policy.prune(index, scores, alive, row)
            elif index == policy.prunes_before:
                alive = row.less(alive, [row.image[i] for i in imposed[len(record.sets)][index].stored])
            is_alive = torch.zeros(row.length, dtype=torch.bool)
            is_alive[alive] = True
            query, key, value = decoder.project(x, block, positions)
            append(layer, key, value)
            layer.stored[:, positions] = is_alive[positions]
            layer.core |= row.is_image & is_alive
            visible = layer.stored[:, None] & (torch.arange(row.length) <= positions[:, None])
            attended, weights = decoder.attend(query, layer.key, layer.value, visible)
            score = _mean(weights, len(key), policy.per_head)
            asking = score[:, is_alive[positions]]
            layer.mass += (asking if policy.queries is None else asking[:, -policy.queries :]).sum(1)
            n_read = int(visible[:, -1].sum()) / len(key)
            scores.append(score[0, -1])
            policy.go_on(layer, score[0, -1], alive, row, limit)
            layer.core &= layer.stored.any(0)
            impose(len(record.sets), index)
            snapshots.append(snapshot(index, n_read))
            x = decoder.finish(x, attended, block)
        token = answer(emit(x, snapshots), row, limit)
    return record
