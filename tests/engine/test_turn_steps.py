"""Every way in which steps run goes on into later turns: compiled, in torch, a contiguous core, fixed addresses, all rows together."""

from __future__ import annotations

import policy_cases
import pytest
import torch
from random_models import RAGGED, build_model, encode, shared_processor
from test_joined_rows import seen

import avl
from avl.cache import joined, parts
from avl.cache.contiguous import ContiguousSlotTable
from avl.cache.slots import StaticSlotTable
from avl.engine import decoder as engine
from avl.engine.cuda_graphs import GraphDecoder
from avl.engine.decoder import Decoder

LIMIT = 5
POLICIES = [*policy_cases.POLICIES, policy_cases.SPREAD]
BATCHES = {"one": RAGGED[:1], "alike": (RAGGED[0], RAGGED[0]), "ragged": (RAGGED[1], RAGGED[0], RAGGED[2], RAGGED[0])}

pytestmark = pytest.mark.filterwarnings("ignore:Use of index_put_ on expanded tensors")


def converse(model, inputs, policy, kind=Decoder):
    """Logits of every pass, what was seen after each, and the cache, over three turns; tokens are given."""
    rows = len(inputs["input_ids"])
    draw = torch.Generator().manual_seed(3)
    cache = avl.make_cache(model, inputs, policy, LIMIT)
    decoder = kind(model, cache)
    logits, states = [decoder.prefill(inputs).clone()], [seen(cache)]
    for turn in range(3):
        if turn:
            # rows that were alike go on alike, or apart
            new = [torch.randint(30, 100, (4 + turn * (row == 1),), generator=draw).tolist() for row in range(rows)]
            cache.extend([len(some) for some in new], LIMIT + turn)
            decoder = kind(model, cache)
            logits.append(decoder.extend(new).clone())
            states.append(seen(cache))
        for _ in range(LIMIT - 1):
            logits.append(decoder.step(torch.randint(30, 100, (rows,), generator=draw)).clone())
            states.append(seen(cache))
    return logits, states, cache


def uncompiled(monkeypatch):
    monkeypatch.setattr(engine, "why_not_compiled", lambda *_: "a test says so")


def contiguous(monkeypatch):
    uncompiled(monkeypatch)
    monkeypatch.setattr(parts, "in_place", lambda kv: False)


def together(monkeypatch):
    uncompiled(monkeypatch)
    monkeypatch.setattr(joined, "joins", lambda device: True)


KINDS = {
    "in-torch": (uncompiled, Decoder, lambda cache: not cache.static),
    "contiguous": (contiguous, Decoder, lambda cache: any(isinstance(table, ContiguousSlotTable) for table in cache.tables)),
    "fixed": (uncompiled, GraphDecoder, lambda cache: all(isinstance(table, StaticSlotTable) for table in cache.tables)),
    "together": (together, Decoder, lambda cache: len(cache.joined) > 0),
    "together-fixed": (together, GraphDecoder, lambda cache: len(cache.joined) > 0 and cache.static),
}
CASES = [
    *((kind, "one", policy) for kind in ("in-torch", "fixed") for policy in POLICIES),
    *(("contiguous", batch, policy) for batch in ("one", "alike") for policy in POLICIES if isinstance(policy, avl.AVL)),
    *((kind, "ragged", policy) for kind in ("together", "together-fixed") for policy in POLICIES),
]
FAST = {("in-torch", "AVL"), ("fixed", "AVL"), ("fixed", "H2O"), ("contiguous", "AVL"), ("together", "H2O"), ("together-fixed", "AVL")}


def marked(kind, batch, policy):
    slow = [] if (kind, policy.name) in FAST and policy != policy_cases.SPREAD else [pytest.mark.slow]
    return pytest.param(kind, batch, policy, marks=slow, id=f"{kind}-{batch}-{policy.label}")


@pytest.mark.parametrize(("kind", "batch", "policy"), [marked(*case) for case in CASES])
@torch.inference_mode()
def test_steps_go_on(kind, batch, policy, monkeypatch):
    model = avl.attach(build_model("next-mistral"))
    inputs = dict(encode(shared_processor("next-mistral"), BATCHES[batch]))
    expected, states, _ = converse(model, inputs, policy)
    change, decoder, holds = KINDS[kind]
    change(monkeypatch)
    logits, found, cache = converse(model, inputs, policy, decoder)
    assert holds(cache)
    assert len(logits) == len(expected) == 3 * LIMIT
    for one, other in zip(logits, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)
    assert found == states


@torch.inference_mode()
def test_one_row_runs_compiled():
    model = avl.attach(build_model("next-mistral"))
    cache = avl.make_cache(model, inputs := dict(encode(shared_processor("next-mistral"), RAGGED[:1])), POLICIES[1], LIMIT)
    decoder = Decoder(model, cache)
    if decoder.uncompiled is not None:
        pytest.skip(decoder.uncompiled)
    decoder.prefill(inputs)
    cache.extend([3], LIMIT)
    decoder = Decoder(model, cache)
    decoder.extend([[30, 31, 32]])
    decoder.step(torch.tensor([40]))
    assert decoder.uncompiled is None
    assert decoder._compiled is not None
