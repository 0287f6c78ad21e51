"""A whole decode step compiled by numba: from the token's embedding to logits, windows and core included, in one call for a CPU.

A small model's step in torch is bound by some 1500 operations, not by its numbers; a large one's by products that read the weights several
times. Here the threads walk the layers together. Between two barriers each does its share of a product, or of the heads; the norms, which
are cheap, every thread does for itself, so they need no barrier. Numbers between products are float32, rounded to the model's dtype where
its modules round.

The windows are those of kernels/window/reference.py, the work between products that of kernels/layer/reference.py.
"""

import math

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from avl.kernels.core.numba import TOGETHER, attend_share, collect_scores
from avl.kernels.native.memory import FAST, float_bits, narrow, part_of, pointer, rounded, size_of, view, wait_for_all, wide
from avl.kernels.native.team import kernels, run
from avl.kernels.product.numba import multiply
from avl.kernels.window.types import FREE

LAYER = np.dtype(
    [
        # addresses, 0 where there is nothing: weights and biases
        *((name, np.int64) for name in ("first_norm", "second_norm", "query_norm", "key_norm")),
        *((name + end, np.int64) for name in ("query", "key", "value", "out", "gate", "up", "down") for end in ("", "_bias")),
        # what the slot table holds: [B, slots, G, D] twice, with bytes from row to row, slot to slot, head to head
        *((name + end, np.int64) for name in ("keys", "values") for end in ("", "_row", "_slot", "_head")),
        # int64 [B, windows, capacity]; float32 likewise; int64 [B, windows] twice
        *((name, np.int64) for name in ("token_idx", "sums", "slot", "entered")),
        # int64 [B], which become the tokens that an update and a core step read; int32 [B, core + capacity]; float32 [B, image] twice
        *((name, np.int64) for name in ("all_length", "core_length", "index", "image_scores", "weights")),
        # numbers of tokens: core -1 for none, most -1 for unlimited; windows are 1 or G; count is of the window during this step
        *((name, np.int64) for name in ("image", "core", "capacity", "prompt", "most", "recent", "sinks", "windows", "count")),
        *((name, np.float32) for name in ("first_eps", "second_eps", "head_eps", "scale")),
    ],
    align=True,
)
"""One layer: its weights, what its slot table holds (avl/cache/slots.py, `StaticSlotTable`), and sizes."""

STEP = np.dtype(
    [
        *((name, np.int64) for name in ("threads", "counter", "table")),
        # sizes: width is the most columns that a step reads
        *((name, np.int64) for name in ("layers", "rows", "hidden", "heads", "kv_heads", "size", "inner", "vocab", "width")),
        # addresses: elements [B, hidden], int64 [B], elements [positions, 2, D] (cosines, signed sines), weights, float32 [B, vocab]
        *((name, np.int64) for name in ("embedded", "positions", "rotary", "last_norm", "head", "head_bias", "logits")),
        *((name, np.int64) for name in ("update", "by_group")),
        # scratch, float32
        *((name, np.int64) for name in ("residuals", "states", "qkv", "queries", "attended", "delta", "gate", "up", "weights", "parts")),
        ("last_eps", np.float32),
    ],
    align=True,
)
"""A step: sizes of the model and its batch, what goes in and comes out, and scratch memory."""

_LAST = np.int64(2**63 - 1)


@njit(fastmath=FAST, error_model="numpy")
def _norm(x, weight, count, eps, like, out):
    """Write the RMS norm of `count` numbers at `x`; weight: address of elements; x, out: addresses of float32, which may be the same."""
    states, result, w, total = view(x, count, np.float32(0)), view(out, count, np.float32(0)), view(weight, count, like), np.float32(0)
    for i in range(count):
        total += states[i] * states[i]
    scale = np.float32(1) / np.float32(math.sqrt(total / np.float32(count) + eps))
    for i in range(count):
        result[i] = rounded(rounded(states[i] * scale, like) * wide(w[i]), like)


@njit(fastmath=FAST, error_model="numpy")
def _add(x, more, count, like):
    """Add `count` float32 at `more` to those at `x`."""
    states, added = view(x, count, np.float32(0)), view(more, count, np.float32(0))
    for i in range(count):
        states[i] = rounded(states[i] + added[i], like)


@njit(fastmath=FAST, error_model="numpy")
def _rotate(x, cos, sin, size, like, factor, out):
    """Write a rotated head, times `factor`. x, out: addresses of float32, not the same; cos, sin: of elements, sin with its signs."""
    one, half = np.float32(0), size // 2
    first, second, result = view(x, half, one), view(x + 4 * half, half, one), view(out, size, one)
    c, s = view(cos, size, like), view(sin, size, like)
    for d in range(half):
        turned = rounded(first[d] * wide(c[d]), like) + rounded(second[d] * wide(s[d]), like)
        result[d] = rounded(turned, like) * factor
    for d in range(half):
        turned = rounded(second[d] * wide(c[half + d]), like) + rounded(first[d] * wide(s[half + d]), like)
        result[half + d] = rounded(turned, like) * factor


@njit(fastmath=FAST, error_model="numpy")
def _store(x, count, like, out):
    """Write `count` float32 at `x` as elements."""
    states, result = view(x, count, np.float32(0)), view(out, count, like)
    for i in range(count):
        result[i] = narrow(states[i], like)


@njit(fastmath=False, error_model="numpy")
def _silu(gate, up, count, like):
    """Multiply `count` float32 at `up` with SiLU of those at `gate`."""
    gates, ups = view(gate, count, np.float32(0)), view(up, count, np.float32(0))
    for i in range(count):
        x = gates[i]
        silu = rounded(x / (np.float32(1) + np.float32(math.exp(-x))), like)
        ups[i] = rounded(silu * ups[i], like)


@njit(error_model="numpy")
def _enter(layer, rows):
    """Put the step's token into its slot in every window of a layer (kernels/window/reference.py, `enter_window`)."""
    whole, capacity = np.int64(0), layer.capacity
    for w in range(rows * layer.windows):
        entered = view(layer.entered + 8 * w, 1, whole)
        place = w * capacity + view(layer.slot + 8 * w, 1, whole)[0]
        view(layer.token_idx + 8 * place, 1, whole)[0] = entered[0] + layer.prompt
        if layer.sums != 0:
            view(layer.sums + 4 * place, 1, np.float32(0))[0] = np.float32(0)
        entered[0] += 1
    for b in range(rows):
        if layer.all_length != 0:
            view(layer.all_length + 8 * b, 1, whole)[0] = layer.image + layer.count
        if layer.core_length != 0:
            view(layer.core_length + 8 * b, 1, whole)[0] = layer.core + layer.count


@njit(error_model="numpy")
def _leave(layer, w):
    """Evict the weakest token of a window over its size, and set where the next one goes (`leave_window`)."""
    whole, slot = np.int64(0), min(layer.count, layer.capacity - 1)
    if layer.most >= 0 and layer.count > layer.most:
        newest = view(layer.entered + 8 * w, 1, whole)[0] + layer.prompt
        tokens = view(layer.token_idx + 8 * w * layer.capacity, layer.capacity, whole)
        slot, oldest, least = 0, _LAST, np.float32(np.inf)
        ranked = layer.sums != 0
        sums = view(layer.sums + 4 * w * layer.capacity, layer.capacity, np.float32(0))
        for c in range(layer.capacity):
            token = tokens[c]
            if token < newest - layer.recent and token >= layer.sinks:
                found = sums[c] if ranked else np.float32(0)
                if found < least or (found == least and token < oldest):
                    slot, oldest, least = c, token, found
        tokens[slot] = FREE
    view(layer.slot + 8 * w, 1, whole)[0] = slot


@njit(fastmath=FAST, error_model="numpy")
def _choose(layer, b):
    """Make the best image tokens of a row its core: the first entries of its index, ascending; ties go to the lower slot."""
    count, core = layer.image, layer.core
    scores = view(layer.image_scores + 4 * b * count, count, np.float32(0))
    keys = np.empty(count, np.uint32)  # the bits of a float that is not negative grow with it
    for i in range(count):
        keys[i] = float_bits(scores[i])
    if layer.weights != 0:
        weights = view(layer.weights + 4 * b * count, count, np.float32(0))
        for i in range(count):
            if weights[i] > np.float32(0):
                keys[i] = float_bits(weights[i])
    low, high = np.int64(0), np.int64(1) << 32
    while high - low > 1:  # the largest threshold that enough keys reach
        middle, reached = np.uint32((low + high) // 2), np.int32(0)
        for i in range(count):
            reached += np.int32(keys[i] >= middle)
        if reached >= core:
            low = (low + high) // 2
        else:
            high = (low + high) // 2
    above = 0
    for i in range(count):
        above += keys[i] > np.uint32(low)
    ties, place = core - above, 0
    index = view(layer.index + 4 * b * (core + layer.capacity), core, np.int32(0))
    for i in range(count):
        if keys[i] > np.uint32(low) or (keys[i] == np.uint32(low) and ties > 0):
            if keys[i] == np.uint32(low):
                ties -= 1
            index[place] = i
            place += 1


@njit(error_model="numpy")
def _job(thread, arguments, like):
    s, one = carray(pointer(arguments), (1,), STEP)[0], np.float32(0)
    table, threads, counter = carray(pointer(s.table), (s.layers,), LAYER), s.threads, s.counter
    rows, hidden, heads, kv_heads, size, inner, vocab = s.rows, s.hidden, s.heads, s.kv_heads, s.size, s.inner, s.vocab
    qkv, attended, delta, gate, up = s.qkv, s.attended, s.delta, s.gate, s.up
    update, by_group, element, shared, lanes = (
        s.update != 0,
        s.by_group != 0,
        size_of(like),
        heads // kv_heads,
        (heads + 2 * kv_heads) * size,
    )
    turned = np.empty(size, np.float32)
    # every thread has hidden states of its own, all alike
    residual, state = s.residuals + 4 * thread * rows * hidden, s.states + 4 * thread * rows * hidden
    own, elements = view(residual, rows * hidden, one), view(s.embedded, rows * hidden, like)
    for i in range(rows * hidden):
        own[i] = wide(elements[i])
    first, last = part_of(s.layers, thread, threads, 1)
    for number in range(first, last):
        _enter(table[number], rows)
    q0, q1 = part_of(heads * size, thread, threads, 4)
    k0, k1 = part_of(kv_heads * size, thread, threads, 4)
    h0, h1 = part_of(hidden, thread, threads, 4)
    i0, i1 = part_of(inner, thread, threads, 4)
    for number in range(s.layers):
        layer = table[number]
        if number > 0:
            _add(residual, delta, rows * hidden, like)
        for b in range(rows):
            _norm(residual + 4 * b * hidden, layer.first_norm, hidden, layer.first_eps, like, state + 4 * b * hidden)
        multiply(state, rows, hidden, layer.query, layer.query_bias, q0, q1, like, qkv, lanes)
        multiply(state, rows, hidden, layer.key, layer.key_bias, k0, k1, like, qkv + 4 * heads * size, lanes)
        multiply(state, rows, hidden, layer.value, layer.value_bias, k0, k1, like, qkv + 4 * (heads + kv_heads) * size, lanes)
        wait_for_all(counter, threads)
        scale = np.float32(layer.scale * np.float32(1.4426950408889634))
        first, last = part_of(rows * (heads + kv_heads), thread, threads, 1)
        for item in range(first, last):
            b, h = item // (heads + kv_heads), item % (heads + kv_heads)
            x = qkv + 4 * (b * lanes + h * size)
            norm = layer.query_norm if h < heads else layer.key_norm
            if norm != 0:
                _norm(x, norm, size, layer.head_eps, like, x)
            cos = s.rotary + view(s.positions + 8 * b, 1, np.int64(0))[0] * 2 * size * element
            if h < heads:
                _rotate(x, cos, cos + size * element, size, like, scale, s.queries + 4 * (b * heads + h) * size)
            else:
                g = h - heads
                _rotate(x, cos, cos + size * element, size, like, np.float32(1), turned.ctypes.data)
                slot = layer.image + view(layer.slot + 8 * (b * layer.windows + (g if layer.windows > 1 else 0)), 1, np.int64(0))[0]
                _store(turned.ctypes.data, size, like, layer.keys + b * layer.keys_row + slot * layer.keys_slot + g * layer.keys_head)
                place = layer.values + b * layer.values_row + slot * layer.values_slot + g * layer.values_head
                _store(x + 4 * kv_heads * size, size, like, place)
        wait_for_all(counter, threads)
        whole = update or layer.core < 0
        columns = (layer.image if whole else layer.core) + layer.count
        ranks = update and layer.core >= 0
        start, stop = columns, columns
        if layer.sums != 0:
            start = columns - layer.count
        if ranks:
            start = 0
            if layer.sums == 0:
                stop = layer.image
        strides = (
            layer.keys_row, layer.keys_head, layer.keys_slot, layer.values_row, layer.values_head, layer.values_slot,
            4 * (layer.core + layer.capacity), np.int64(0),
        )  # fmt: skip
        attend_share(
            thread, threads, s.queries, layer.keys, layer.values, rows, kv_heads, shared, size, columns, np.int64(0), 0, layer.index,
            0 if whole else 4, strides, like, s.weights, attended, by_group, start, stop, s.parts, np.int64(0), layer.sums, layer.count,
            4 * layer.windows * layer.capacity, 4 * layer.capacity,
        )  # fmt: skip
        first, last = part_of(rows * kv_heads, thread, threads, 1)
        result = view(attended + 4 * first * shared * size, (last - first) * shared * size, one)
        for i in range((last - first) * shared * size):
            result[i] = rounded(result[i], like)
        wait_for_all(counter, threads)
        if stop > start and not by_group:
            collect_scores(
                thread, threads, s.parts, rows, columns, start, stop, layer.image_scores if ranks else 0, 0, layer.image, layer.sums,
                layer.count, 4 * layer.capacity,
            )  # fmt: skip
        multiply(attended, rows, heads * size, layer.out, layer.out_bias, h0, h1, like, delta, hidden)
        wait_for_all(counter, threads)
        _add(residual, delta, rows * hidden, like)
        for b in range(rows):
            _norm(residual + 4 * b * hidden, layer.second_norm, hidden, layer.second_eps, like, state + 4 * b * hidden)
        multiply(state, rows, hidden, layer.gate, layer.gate_bias, i0, i1, like, gate, inner)
        multiply(state, rows, hidden, layer.up, layer.up_bias, i0, i1, like, up, inner)
        for b in range(rows):
            _silu(gate + 4 * (b * inner + i0), up + 4 * (b * inner + i0), i1 - i0, like)
        wait_for_all(counter, threads)
        multiply(up, rows, inner, layer.down, layer.down_bias, h0, h1, like, delta, hidden)
        wait_for_all(counter, threads)
    _add(residual, delta, rows * hidden, like)
    for b in range(rows):
        _norm(residual + 4 * b * hidden, s.last_norm, hidden, s.last_eps, like, state + 4 * b * hidden)
    v0, v1 = part_of(vocab, thread, threads, 4)
    multiply(state, rows, hidden, s.head, s.head_bias, v0, v1, like, s.logits, vocab)
    first, last = part_of(s.layers, thread, threads, 1)
    for number in range(first, last):
        layer = table[number]
        for w in range(rows * layer.windows):
            _leave(layer, w)
        if update and layer.core >= 0:
            for b in range(rows):
                _choose(layer, b)


def _step_kernels(digest):
    def float32(thread, arguments):
        digest  # noqa: B018
        _job(thread, arguments, np.float32(0))

    def bfloat16(thread, arguments):
        digest  # noqa: B018
        _job(thread, arguments, np.uint16(0))

    def float16(thread, arguments):
        digest  # noqa: B018
        _job(thread, arguments, np.int16(0))

    return {torch.float32: float32, torch.bfloat16: bfloat16, torch.float16: float16}


_kernel = kernels(_step_kernels)


class Step:
    """A decode step of one model and one batch, and its scratch memory.

    Attributes:
        layers: one record of `LAYER` for each layer; the caller fills them in, and `count` before every step.
        logits: float32 [B, vocab], overwritten by every step.
    """

    def __init__(self, dtype: torch.dtype, rotary: Tensor, last_norm: Tensor, last_eps: float, head: Tensor, head_bias: Tensor | None,
                 threads: int, **sizes: int) -> None:  # fmt: skip
        """Allocate what a step needs.

        Args:
            dtype: of weights, keys and values.
            rotary: [positions, 2, D].
            last_norm: [hidden].
            last_eps: of the last norm.
            head: [vocab, hidden].
            head_bias: [vocab] or None.
            threads: how many run it.
            sizes: the sizes of `STEP`.
        """
        self._job = _kernel(dtype)
        self._held = (rotary, last_norm, head, head_bias)  # their memory must outlive this
        self.layers = np.zeros(sizes["layers"], LAYER)
        rows, hidden, heads, kv_heads, size, inner = (sizes[name] for name in ("rows", "hidden", "heads", "kv_heads", "size", "inner"))
        self.logits = torch.empty(rows, sizes["vocab"])
        self._threads = threads
        scratch = {
            "residuals": threads * rows * hidden, "states": threads * rows * hidden, "qkv": rows * (heads + 2 * kv_heads) * size,
            "queries": rows * heads * size, "attended": rows * heads * size, "delta": rows * hidden,
            "gate": rows * inner, "up": rows * inner,
            "weights": threads * TOGETHER * (heads // kv_heads) * sizes["width"], "parts": threads * rows * sizes["width"],
        }  # fmt: skip
        self._scratch = {name: torch.empty(count) for name, count in scratch.items()}
        self._numbers = np.zeros(1, STEP)
        filled = {name: tensor.data_ptr() for name, tensor in self._scratch.items()} | sizes
        filled |= {"table": self.layers.ctypes.data, "rotary": rotary.data_ptr(), "last_norm": last_norm.data_ptr(), "last_eps": last_eps}
        filled |= {"head": head.data_ptr(), "head_bias": 0 if head_bias is None else head_bias.data_ptr(), "logits": self.logits.data_ptr()}
        for name, value in filled.items():
            self._numbers[name] = value

    def __call__(self, embedded: Tensor, positions: Tensor, update: bool, by_group: bool) -> Tensor:
        """Run a step.

        Args:
            embedded: [B, hidden], of the step's tokens.
            positions: int64 [B], their positions.
            update: whether it is an update step.
            by_group: whether sums of scores are kept for each KV head.

        Returns:
            `logits`.
        """
        numbers = self._numbers
        numbers["embedded"], numbers["positions"], numbers["update"], numbers["by_group"] = (
            embedded.data_ptr(), positions.data_ptr(), update, by_group,
        )  # fmt: skip
        run(self._job, numbers.view(np.int64), self._threads)
        return self.logits
