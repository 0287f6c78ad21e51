"""Spread tokens: an even lattice in every layer, held whatever the scores are, at the same counts as without."""

from __future__ import annotations

import itertools

import pytest
import torch
from random_models import build_model, encode, request, shared_processor

import avl
from avl import policies
from avl.engine.cuda_graphs import GraphDecoder
from avl.engine.decoder import Decoder
from avl.policies.base import PromptShape, share
from avl.policies.cost import step_cost
from avl.policies.lattice import lattice

STEPS = 7


@pytest.mark.parametrize("n", [1, 7, 144, 576, 2928])
@pytest.mark.parametrize("percent", [0.5, 5, 16.5, 33, 45, 100])
@pytest.mark.parametrize("layer", [0, 1, 17, 39])
def test_a_lattice_is_even_and_nested(n, percent, layer):
    count = share(percent, n)
    found = lattice(n, count, layer)
    assert len(found) == len(set(found)) == count
    assert set(found) <= set(range(n))
    assert lattice(n, (count + 1) // 2, layer) == found[: (count + 1) // 2]
    if 3 <= count < n / 2:
        places = sorted(found)
        gaps = [second - first for first, second in itertools.pairwise(places)]
        # three-gap theorem: at most three distances, of which the largest is the sum of the others
        assert len(set(gaps)) <= 3
        assert max(gaps) <= 3.7 * n / count


@pytest.mark.parametrize(("n", "width"), [(576, 24), (2304, 48)])
@pytest.mark.parametrize(("percent", "side"), [(16.5, 6), (33, 4)])
def test_every_row_column_and_corner_of_a_picture_is_covered(n, width, percent, side):
    """Reading order is not all: no block of 4 x 4 patches is without a token at a third, none of 6 x 6 at half of that."""
    for layer in range(40):
        table = torch.zeros(n, dtype=torch.bool)
        table[list(lattice(n, share(percent, n), layer))] = True
        blocks = table.view(-1, side, width // side, side).any(dim=3).any(dim=1)
        assert blocks.all(), layer


def test_layers_differ_and_together_cover_everything():
    sets = [set(lattice(576, 190, layer)) for layer in range(8)]
    assert len({frozenset(one) for one in sets}) == 8
    assert set().union(*sets) == set(range(576))
    assert lattice(576, 5, 3) == lattice(576, 5, 3)


@pytest.mark.parametrize("spread", [0, -1, 101, True, "33", float("nan"), 46, 10**400])
def test_spread_is_above_0_and_at_most_s(spread):
    with pytest.raises(ValueError, match="spread"):
        avl.AVL(S=45, C=30, spread=spread)


@pytest.mark.parametrize("shape", [PromptShape(576, 60, 256, 32), PromptShape(2928, 66, 256, 40), PromptShape(7, 3, 5, 4)])
def test_counts_are_those_without_it(shape):
    plain, covered = (avl.AVL(S=45, C=30, K=3, P=90, T=60, spread=spread) for spread in (None, 33))
    for t in (0, 1, 2, 3, 4, 100):
        assert step_cost(plain, shape, t) == step_cost(covered, shape, t)
    assert covered.at_stored(0.4, 576, 60, 32).S == plain.at_stored(0.4, 576, 60, 32).S
    small = covered.at_stored(0.2, 576, 20, 32)
    assert small.spread == small.S < 33


def test_a_label_and_a_trace_name_it():
    policy = avl.AVL(S=45, C=30, K=3, spread=33)
    assert policy.label == "A-VL S=45 C=30 K=3 spread=33"
    assert policy.to_dict()["spread"] == 33
    assert policies.parse_policy("avl:S=45,C=30,spread=33").spread == 33
    assert "spread" not in avl.AVL(S=45).label
    assert all(preset.spread is None for preset in avl.PRESETS.values())


@pytest.mark.parametrize("kind", [Decoder, GraphDecoder])
@pytest.mark.parametrize("rows", [[request(1)], [request(1), request(2)]], ids=["one", "alike"])
@torch.inference_mode()
def test_lattices_are_held_in_every_layer_and_step(kind, rows):
    """One row on a CPU keeps its core contiguous; several, and fixed addresses, choose slots."""
    model, inputs = avl.attach(build_model("llava-llama")), dict(encode(shared_processor("llava-llama"), rows))
    cache = avl.make_cache(model, inputs, avl.AVL(S=60, C=40, K=2, T=60, spread=50), STEPS)
    n = cache.rows[0].n_image
    decoder = kind(model, cache)
    tokens = decoder.prefill(inputs).argmax(dim=-1)
    cores = []
    for step in range(STEPS):
        if step:
            tokens = decoder.step(tokens).argmax(dim=-1)
        for row in range(len(rows)):
            for layer, (stored, core) in enumerate(cache.image_sets(row)):
                assert set(lattice(n, share(50, n), layer)) <= set(stored)
                assert set(lattice(n, share(25, n), layer)) <= set(core)
                assert (len(stored), len(core)) == (share(60, n), share(40, n))
        cores.append(cache.image_sets(0)[1][1])
    assert len({tuple(core) for core in cores}) > 1, "the rest of the core is chosen by score"


@torch.inference_mode()
def test_pruning_keeps_the_ranking_layers_lattice():
    """P below spread too: then the first of the lattice stay."""
    model, inputs = (
        avl.attach(build_model("next-mistral")),
        dict(encode(shared_processor("next-mistral"), [request(1), request(2, after=9)])),
    )
    for percent, spread in ((90, 40), (60, 60), (20, 60)):
        cache = avl.make_cache(model, inputs, avl.AVL(S=60, C=30, P=percent, spread=spread), 4)
        model(**inputs, past_key_values=cache, use_cache=True)
        for number, row in enumerate(cache.rows):
            kept = min(share(spread, row.n_image), share(percent, row.n_image))
            assert set(lattice(row.n_image, kept, 1)).isdisjoint(cache.pruned[number])
