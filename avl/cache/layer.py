"""The keys and values that one decoder layer stores.

Layout. One flat storage ``[slots, G, D]`` for keys and one for values, token-major, so that one slot index serves all heads. Rows of a
batch with the same layout (padding, length and image positions) form a bucket, stored as ``[b, slots, G, D]``; a ragged batch has several
buckets and wastes no memory. Within a row: pinned image slots, then the window (text, or everything for policies that ignore modalities),
its free slots last. Keys are stored after RoPE, so their order in memory does not matter, and a new token simply overwrites the slot of an
evicted one.

Keys and values are moved by this file, by the fused step's kernel (``append_rope``) and, to keep a core contiguous, by
avl/cache/contiguous.py.

Shapes: B rows, b rows of a bucket, H query heads, G key-value heads, D head size, M image tokens in a layer's hidden states.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import CacheLayerMixin

from avl.cache.prefill_state import PromptColumns
from avl.cache.ranking import best, best_of_prompt, lift
from avl.cache.slots import LayerKV, RowBucket, WindowPlan
from avl.kernels.layer.types import HeadNorms
from avl.kernels.window.reference import FREE

if TYPE_CHECKING:
    from avl.cache.cache import AdaptiveCache
    from avl.cache.joined import JoinedRows

NOT_ATTACHED = (
    "this cache needs adaptive attention, but the model does not run it: call avl.attach(model), also after set_attn_implementation"
)


class AdaptiveLayer(CacheLayerMixin):
    """The keys and values of one decoder layer; only our attention function (avl/attention/interface.py) reads them."""

    is_sliding = False

    def __init__(self, owner: AdaptiveCache, number: int) -> None:
        self.kvs: list[LayerKV] = []
        self.joined: tuple[JoinedRows, int] | None = None  # where rows of all buckets run together, and this layer's number there
        self.flat: tuple[torch.Tensor, torch.Tensor] | None = None
        super().__init__()  # type: ignore[no-untyped-call]
        self.number = number
        self.adopt(owner)

    def adopt(self, owner: AdaptiveCache) -> None:
        """Become a layer of ``owner``."""
        # weak: a reference cycle would keep a canceled generation's memory until the garbage collector runs
        self._owner = weakref.ref(owner)

    @property
    def owner(self) -> AdaptiveCache:
        """The cache this layer is part of."""
        owner = self._owner()
        assert owner is not None, "a layer lives inside its cache"
        return owner

    @property
    def keys(self) -> torch.Tensor | None:
        """Stored keys, free slots included: ``[B, G, slots, D]`` if all rows have the same layout, else flat ``[slots, G, D]``."""
        return self._view(0)

    @keys.setter
    def keys(self, value: torch.Tensor | None) -> None:
        """Ignore the None that transformers' base class sets."""

    @property
    def values(self) -> torch.Tensor | None:
        """Stored values, laid out like :attr:`keys`."""
        return self._view(1)

    @values.setter
    def values(self, value: torch.Tensor | None) -> None:
        """Ignore the None that transformers' base class sets."""

    def _view(self, which: int) -> torch.Tensor | None:
        if self.flat is None:
            return None
        return self.flat[which].view(self.kvs[0].keys.shape).transpose(1, 2) if len(self.kvs) == 1 else self.flat[which]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: :meth:`commit_prompt` allocates the storage, once scores are known."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return new keys and values ``[B, G, T, D]`` unchanged, after storing those of a step; our attention reads the stored ones itself.

        Raises:
            RuntimeError: the model is not attached, so its own attention would see only the new tokens.
        """
        owner = self.owner
        if not owner.in_pass:
            raise RuntimeError(NOT_ATTACHED)
        if self.joined is not None and self.flat is not None:
            place = self.place()
            head = torch.arange(place.shape[1] if place.shape[1] > 1 else key_states.shape[1], device=place.device)
            for stored, states in zip(self.flat, (key_states, value_states), strict=True):
                stored[place, head] = states.detach()[:, :, 0].to(stored.dtype)
        elif owner.tables:
            for bucket, kv in zip(owner.buckets, self.kvs, strict=True):
                for stored, states in ((kv.keys, key_states), (kv.values, value_states)):
                    _write(stored, owner.rows_of(states.detach(), bucket)[:, :, 0].to(stored.dtype), kv)
        return key_states, value_states

    def place(self) -> torch.Tensor:
        """Return where the step's token goes in the storage, ``[B, 1 or G]``, where rows of all buckets run together."""
        assert self.joined is not None
        rows, number = self.joined
        return rows.place[number]

    def append_rope(
        self, ops: Any, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, norms: HeadNorms | None = None
    ) -> torch.Tensor:
        """Rotate a step's queries and keys and store the new token in its slot, in one launch where rows run together, else per bucket.

        Args:
            ops: from ``avl.kernels.layer_ops``.
            qkv: ``[B, (H + 2 G) D]``, before RoPE.
            cos: ``[B, D]`` cosines, as ``rotate_and_store`` takes them.
            sin: ``[B, D]`` sines, likewise.
            norms: of queries and keys before RoPE, None for none.

        Returns:
            Queries ``[B, H, 1, D]`` after RoPE.
        """
        if self.joined is not None and self.flat is not None:
            keys, values = (flat.expand(len(qkv), *flat.shape) for flat in self.flat)
            found: torch.Tensor = ops.rotate_and_store(qkv, cos, sin, keys, values, self.place(), 0, norms)
            return found[:, :, None]
        if len(self.kvs) == 1:
            return _append(ops, self.kvs[0], qkv, cos, sin, norms)[:, :, None]
        owner, query = self.owner, None
        for bucket, kv in zip(owner.buckets, self.kvs, strict=True):
            of_rows, cosines, sines = (owner.rows_of(states, bucket) for states in (qkv, cos, sin))
            some = _append(ops, kv, of_rows, cosines, sines, norms)
            if query is None:
                query = some.new_empty(qkv.shape[0], 1, *some.shape[1:])
            query[:, 0].index_copy_(0, bucket.index(some.device), some)
        assert query is not None
        return query.transpose(1, 2)

    def commit_prompt(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        image_scores: list[torch.Tensor] | None,
        window_scores: list[torch.Tensor | None],
    ) -> None:
        """Copy the prompt tokens that the policy stores; the rest is freed with ``key`` and ``value`` before the next layer runs.

        Args:
            key: ``[B, G, L, D]`` of the prompt, after RoPE.
            value: ``[B, G, L, D]``.
            image_scores: per bucket, ``[b, M]`` scores by the last query; None if image tokens are not ranked.
            window_scores: per bucket, ``[b, 1 or G, n]`` scores of the window's prompt tokens; None if they are not ranked.
        """
        owner, device = self.owner, key.device
        sources: list[torch.Tensor] = []
        made: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]] = []
        for number, (bucket, columns) in enumerate(zip(owner.buckets, owner.prefill.columns, strict=True)):
            columns.to(device)
            window = bucket.windows[self.number]
            image, image_idx, index = self._image(bucket, columns, None if image_scores is None else image_scores[number])
            chosen, sums = _window(window, bucket.b, window_scores[number], device)
            kept = columns.window[:, None].expand(-1, chosen.shape[1], -1).gather(2, chosen)
            free = window.capacity - window.start
            # a free slot holds a copy of some token until it is written; it is never read before
            source = torch.cat([image[:, None].expand(-1, kept.shape[1], -1), pad(kept, (0, free))], dim=2)
            sources.append(source.transpose(1, 2))  # [b, slots, 1 or G]
            made.append((image_idx, pad(chosen, (0, free), value=FREE), sums, index))
        self.flat = (self._gather(key, sources), self._gather(value, sources))
        self.kvs, start = [], 0
        for bucket, source, (image_idx, token_idx, sums, index) in zip(owner.buckets, sources, made, strict=True):
            shape = (bucket.b, source.shape[1], *self.flat[0].shape[1:])
            stop = start + shape[0] * shape[1]
            keys, values = (flat[start:stop].view(shape) for flat in self.flat)
            weights = None if index is None else bucket.cover.of(self.number, image_idx, core=True)
            self.kvs.append(LayerKV(keys, values, image_idx, token_idx, sums, index, bucket.windows[self.number], weights))
            start = stop
        self.is_initialized = True
        owner.note_prompt(self)

    def merge(self, others: list[AdaptiveLayer]) -> None:
        """Take over the rows that the same layer of other caches holds, one after another; those layers are empty afterwards."""
        held = [
            [kv for other in others for part, kv in zip(other.owner.buckets, other.kvs, strict=True) if part.alike(bucket)]
            for bucket in self.owner.buckets
        ]
        flats = zip(*((kv.keys.flatten(0, 1), kv.values.flatten(0, 1)) for kvs in held for kv in kvs), strict=True)
        keys, values = (torch.cat(parts) for parts in flats)
        self.flat, self.kvs, start = (keys, values), [], 0
        for kvs in held:
            shape = (sum(kv.keys.shape[0] for kv in kvs), *kvs[0].keys.shape[1:])
            stop = start + shape[0] * shape[1]
            sums = [kv.sums for kv in kvs if kv.sums is not None]
            index = [kv.index for kv in kvs if kv.index is not None]
            weights = [kv.weights for kv in kvs if kv.weights is not None]
            self.kvs.append(
                LayerKV(
                    keys=keys[start:stop].view(shape),
                    values=values[start:stop].view(shape),
                    image_idx=torch.cat([kv.image_idx for kv in kvs]),
                    token_idx=torch.cat([kv.token_idx for kv in kvs]),
                    sums=torch.cat(sums) if sums else None,
                    index=torch.cat(index) if index else None,
                    window=kvs[0].window,
                    weights=torch.cat(weights) if weights else None,
                )
            )
            start = stop
        self.is_initialized = True
        for other in others:
            other.flat, other.kvs = None, []

    def _image(
        self, bucket: RowBucket, columns: PromptColumns, scores: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Choose secondary and core tokens of the image (paper, Fig. 6).

        Args:
            bucket: the rows.
            columns: where their tokens are in the hidden states.
            scores: ``[b, M]`` by the last query, None if image tokens are not ranked.

        Returns:
            Columns ``[b, image]`` to store, the image tokens ``[b, image]`` they hold, and the slots ``[b, core + C]`` that a core step
            reads, None if every step reads all.
        """
        policy = self.owner.policy
        if not policy.pins_image:
            return columns.image[:, :0], columns.image_idx[:, :0], None
        image, image_idx = columns.image, columns.image_idx
        stored = policy.store(self.number, bucket.shape).image
        if stored < image.shape[1]:
            assert scores is not None, "a policy that drops image tokens ranks them"
            chosen = best(lift(scores, bucket.cover.of(self.number, image_idx, core=False)), stored)
            image, image_idx, scores = image.gather(1, chosen), image_idx.gather(1, chosen), scores.gather(1, chosen)
        core = policy.select(self.number, bucket.shape)
        if core is None:
            return image, image_idx, None
        assert scores is not None, "a policy that reads some image tokens ranks them"
        window = stored + torch.arange(bucket.windows[self.number].capacity, device=image.device).expand(bucket.b, -1)
        scores = lift(scores, bucket.cover.of(self.number, image_idx, core=True))
        return image, image_idx, torch.cat([best(scores, core), window], dim=1)

    def _gather(self, states: torch.Tensor, sources: list[torch.Tensor]) -> torch.Tensor:
        """Copy columns ``sources`` (per bucket, ``[b, slots, 1 or G]``) of ``states [B, G, L, D]`` to one new storage ``[slots, G, D]``.

        A copy, because a view would keep the states of the whole prompt in memory.
        """
        tokens = states.detach().transpose(1, 2)  # [B, L, G, D]
        head = torch.arange(tokens.shape[2], device=tokens.device)
        pieces = []
        for columns, source in zip(self.owner.prefill.columns, sources, strict=True):
            row = columns.row_idx[:, None]
            picked = tokens[row, source[..., 0]] if source.shape[2] == 1 else tokens[row[..., None], source, head]
            pieces.append(picked.flatten(0, 1))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def get_seq_length(self) -> int:
        """Return the tokens seen (not stored), padding included; transformers derives positions from it."""
        return self.owner.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    @property
    def batch_size(self) -> int:
        return self.owner.batch_size

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        raise ValueError("adaptive attention does not do beam search, its rows are different requests: use num_beams=1")

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise ValueError("the rows of this cache cannot be repeated: repeat the inputs and make a cache for them with avl.make_cache")

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        raise ValueError("the rows of this cache cannot be selected: make a cache for the rows that are wanted with avl.make_cache")

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError(
            "evicted tokens do not come back, so assisted decoding and prompt lookup, which take tokens back, are not supported"
        )

    def offload(self) -> None:
        raise ValueError("this cache stays on its device: store less (S, T), or use fewer rows")

    def prefetch(self) -> None:
        self.offload()

    def reset(self) -> None:
        raise ValueError("this cache belongs to one generation: make a new one with avl.make_cache")


def _write(stored: torch.Tensor, new: torch.Tensor, kv: LayerKV) -> None:
    """Write the new token's key or value ``[b, G, D]`` to the next free slot."""
    assert kv.table is not None
    slot = kv.table.slot
    if isinstance(slot, int):
        stored[:, kv.image + slot] = new
        return
    row = torch.arange(new.shape[0], device=new.device)[:, None]
    head = torch.arange(new.shape[1], device=new.device)
    stored[row, kv.image + slot[kv.place], head] = new


def _append(ops: Any, kv: LayerKV, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, norms: HeadNorms | None) -> torch.Tensor:
    """Store the new token of one bucket's rows and return their queries ``[b, H, D]`` after RoPE."""
    assert kv.table is not None
    slot = kv.table.slot
    query: torch.Tensor = ops.rotate_and_store(
        qkv, cos, sin, kv.keys, kv.values, slot if isinstance(slot, int) else slot[kv.place], kv.image, norms
    )
    return query


def _window(window: WindowPlan, b: int, scores: torch.Tensor | None, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Choose the window's prompt tokens that stay.

    Args:
        window: the layer's plan.
        b: number of rows.
        scores: ``[b, 1 or G, n]``, None if age alone decides.
        device: of the result.

    Returns:
        The tokens ``[b, 1 or G, start]``, and their scores padded to the window's capacity, None if decode steps accumulate none.
    """
    n, stay, observation = window.prompt, window.start, window.observation
    if stay == n:
        chosen = torch.arange(n, device=device).expand(b, 1 if scores is None else scores.shape[1], n)
    elif scores is not None and observation is not None:
        chosen = best_of_prompt(window, scores, stay)
    else:
        parts = torch.arange(window.sinks, device=device), torch.arange(n - stay + window.sinks, n, device=device)
        chosen = torch.cat(parts).expand(b, 1, stay)
    if scores is None or not window.accumulates:
        return chosen, None
    return chosen, pad(scores.gather(2, chosen), (0, window.capacity - stay))
