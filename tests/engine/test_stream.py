"""``avl.stream``: the events and their order, what they say, sampling, end of sequence, stopping."""

from __future__ import annotations

import pickle
import threading

import oracle
import policy_cases
import pytest
import torch
from random_models import ARCHITECTURES, LAYERS, build_model, encode, picture, request, shared_processor

import avl
from avl.trace import End, Error, Prefill, Sets, Start, Step, Trace, Warning, unpack_bits

LIMIT = 13
QUESTION = "what is on the sign ?"
POLICY = avl.AVL(S=45, C=30, K=3, P=70, T=60)


def run(model, processor, policy=POLICY, image=None, question=QUESTION, **options) -> Trace:
    options = {"max_new_tokens": LIMIT, **options}
    return Trace(list(avl.stream(model, processor, image or picture(1), question, policy, **options)))


def row_of(model, processor, trace: Trace, pictures=None) -> oracle.Row:
    inputs = processor(images=pictures or [picture(1)], text=[trace.start.prompt], return_tensors="pt")
    return oracle.rows(model, inputs)[0]


@pytest.fixture
def small():
    """The smallest model, attached, with its processor; a fresh copy, so a test may set its end of sequence."""
    model = build_model("llava-llama")
    avl.attach(model)
    return model, shared_processor("llava-llama")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_order_of_events(architecture, model, processor):
    trace = run(model, processor)
    assert isinstance(trace.events[0], Start)
    assert isinstance(trace.events[-1], End)
    assert [len(trace.of(kind)) for kind in (Start, Prefill, End, Error)] == [1, 1, 1, 0]
    first = next(i for i, e in enumerate(trace) if isinstance(e, Prefill))
    assert all(i > first for i, e in enumerate(trace) if isinstance(e, Step))
    assert [step.t for step in trace.of(Step)] == list(range(1, LIMIT))
    end = trace.of(End)[0]
    assert end.reason == "length"
    assert list(end.tokens) == [trace.of(Prefill)[0].token, *(step.token for step in trace.of(Step))]


@pytest.mark.parametrize(
    "policy", [*policy_cases.POLICIES, policy_cases.SPREAD, avl.AVL(S=60, C=10, K=2, update="after")], ids=lambda policy: policy.label
)
def test_a_run_carries_its_prediction(policy, small):
    trace = run(*small, policy)
    arm = trace.start.arms[0]
    assert (arm.title, arm.label) == (policy.title, policy.label)
    assert list(arm.predicted) == [(step.stored, step.read) for step in trace.of(Step)]
    pruned = [sets.pruned for sets in trace.of(Sets) if sets.pruned]
    assert (arm.pruned_from is not None) == bool(pruned)
    if arm.pruned_from is not None:
        left = unpack_bits(pruned[0], trace.start.n_image)
        holds_one = [bool((unpack_bits(stored, trace.start.n_image) & left).any()) for stored in trace.of(Sets)[0].stored]
        assert not any(holds_one[arm.pruned_from :])
        assert any(holds_one[: arm.pruned_from])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_start_describes_the_run(architecture, model, processor):
    start = run(model, processor, image=[picture(1, 44, 30), picture(2, 20, 36)]).start
    assert start.question == QUESTION
    assert QUESTION in start.prompt
    assert start.prompt.count("<image>") == 2
    assert start.images == ((44, 30), (20, 36))
    assert start.layers == LAYERS
    assert start.batch == 1
    assert start.limit == LIMIT
    assert start.mode == "single"
    assert len(start.arms) == 1
    inputs = processor(images=[picture(1, 44, 30), picture(2, 20, 36)], text=[start.prompt], return_tensors="pt")
    is_image = (inputs["input_ids"] == model.config.image_token_id)[0]
    assert start.n_image == int(is_image.sum())
    assert start.n_text == len(is_image) - start.n_image
    config = model.config.text_config
    assert start.token_bytes == 2 * config.num_key_value_heads * config.head_dim * 4 * LAYERS
    assert [start.schema, start.temperature, start.top_p] == [2, 0.0, 1.0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_spans_cover_the_prompt(architecture, model, processor):
    trace = run(model, processor)
    inputs = processor(images=[picture(1)], text=[trace.start.prompt], return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    covered = [position for _, start, stop in trace.start.spans for position in range(start, stop)]
    assert covered == list(range(len(ids)))
    for name, start, stop in trace.start.spans:
        assert name in ("system", "image", "instruction", "between")
        assert all((token == model.config.image_token_id) == (name == "image") for token in ids[start:stop])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_grids_name_every_image_token_once_within_range(architecture, model, processor):
    start = run(model, processor, image=[picture(1, 44, 30), picture(2, 20, 36)]).start
    named = [grid.first + i for grid in start.grids for i in range(grid.rows * (grid.cols + grid.newline))]
    assert sorted(named) == list(range(start.n_image))
    for grid in start.grids:
        left, top, right, bottom = grid.box
        width, height = start.images[grid.image]
        assert left < right
        assert top < bottom
        assert right > 0
        assert bottom > 0
        assert left < width
        assert top < height


@pytest.mark.parametrize("update", ["every", "after"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_events_tell_the_oracles_story(architecture, update, model, processor):
    """Counts, update flags and the sets of every Sets event are those of the float64 oracle, at the right step."""
    policy = avl.AVL(S=45, C=30, K=2, P=70, T=60, update=update)
    trace = run(model, processor, policy)
    rule = oracle.AVL(S=45, C=30, K=2, P=70, T=60, update=update)
    truth = oracle.run(model, row_of(model, processor, trace), rule, LIMIT)
    assert list(trace.of(End)[0].tokens) == truth.tokens
    assert list(trace.of(Prefill)[0].stored) == [layer.n_stored for layer in truth.sets[0]]
    entry = trace.start.token_bytes // LAYERS
    for step in trace.of(Step):
        assert step.stored == sum(layer.n_stored for layer in truth.sets[step.t])
        assert step.read == sum(layer.n_read for layer in truth.sets[step.t])
        assert [step.stored_bytes, step.read_bytes] == [step.stored * entry, step.read * entry]
        assert step.update == (step.t % (2 if update == "every" else 3) == 0)
    n, stored, core, pruned, told = trace.start.n_image, None, None, None, {}
    for event in trace:
        if isinstance(event, Sets):
            stored = event.stored or stored
            core, pruned = event.core, event.pruned or pruned
            told[event.t] = True
        elif not isinstance(event, Step | Prefill):
            continue
        if stored is None:
            continue
        t = getattr(event, "t", 0)
        if isinstance(event, Sets):
            for layer in range(LAYERS):
                assert unpack_bits(stored[layer], n).nonzero()[0].tolist() == truth.sets[t][layer].stored
                assert unpack_bits(core[layer], n).nonzero()[0].tolist() == truth.sets[t][layer].core
    assert 0 in told
    for t in range(1, LIMIT):
        if [layer.core for layer in truth.sets[t]] != [layer.core for layer in truth.sets[t - 1]]:
            assert t in told, f"the core changed after step {t} and no Sets event says so"
    gone = unpack_bits(pruned, n)
    assert gone.sum() == n - oracle.share(70, n)
    assert not any(gone[index] for layer in truth.sets[0][2:] for index in layer.stored)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_text_pieces_add_up(architecture, model, processor):
    trace = run(model, processor)
    end = trace.of(End)[0]
    assert trace.of(Prefill)[0].text + "".join(step.text for step in trace.of(Step)) == end.text
    assert end.text.split() == processor.tokenizer.decode(list(end.tokens)).split()


def test_events_are_small_picklable_and_json(small):
    trace = run(*small)
    copies = [pickle.loads(pickle.dumps(event)) for event in trace]
    assert copies == trace.events
    assert Trace.from_json(trace.to_json()).events == trace.events
    assert max(len(pickle.dumps(event)) for event in trace) < 20_000

    def leaves(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list | tuple):
            for item in value:
                yield from leaves(item)
        else:
            yield value

    assert all(leaf is None or isinstance(leaf, str | int | float | bool) for event in trace for leaf in leaves(event.to_dict()))


def test_end_summarises_the_steps(small):
    trace = run(*small)
    end, steps = trace.of(End)[0], trace.of(Step)
    assert end.stored_bytes == pytest.approx(sum(step.stored_bytes for step in steps) / len(steps))
    assert end.read_bytes == pytest.approx(sum(step.read_bytes for step in steps) / len(steps))
    assert end.peak_bytes >= max(trace.of(Prefill)[0].stored_bytes, *(step.stored_bytes for step in steps))
    assert trace.of(Prefill)[0].peak_bytes <= end.peak_bytes
    clocks = [trace.of(Prefill)[0].ms, *(step.clock_ms for step in steps)]
    assert clocks == sorted(clocks)
    assert end.ttft_ms == trace.of(Prefill)[0].ms
    assert end.median_ms is not None
    assert end.median_ms > 0


def test_one_new_token_has_no_steps(small):
    trace = run(*small, max_new_tokens=1)
    assert trace.of(Step) == []
    end = trace.of(End)[0]
    prefill = trace.of(Prefill)[0]
    assert [len(end.tokens), end.median_ms, end.stored_bytes, end.read_bytes, end.reason] == [1, None, prefill.stored_bytes, 0, "length"]


@pytest.mark.parametrize("where", [0, 4])
def test_eos_ends_the_answer_and_is_not_part_of_it(small, where):
    model, processor = small
    free = run(model, processor).of(End)[0].tokens
    eos = free[where]
    model.generation_config.eos_token_id = [eos, 4]
    end = run(model, processor).of(End)[0]
    assert end.reason == "eos"
    assert end.tokens == free[: free.index(eos)]
    assert processor.tokenizer.convert_ids_to_tokens(eos) not in end.text.split()


def test_stop_is_polled_between_steps(small):
    """Set during step 3, it ends the run before another token is computed; what was said stays."""
    stop, seen = threading.Event(), []
    for event in avl.stream(*small, picture(1), QUESTION, POLICY, max_new_tokens=LIMIT, stop=stop):
        seen.append(event)
        if isinstance(event, Step) and event.t == 3:
            stop.set()
    assert isinstance(seen[-1], End)
    assert seen[-1].reason == "stopped"
    assert max(event.t for event in seen if isinstance(event, Step)) == 3
    assert seen[-1].tokens == run(*small).of(End)[0].tokens[:4]
    assert run(*small).of(End)[0].reason == "length", "the model works on after a stop"


def test_stop_before_the_start_computes_nothing(small):
    stop = threading.Event()
    stop.set()
    events = list(avl.stream(*small, picture(1), QUESTION, POLICY, max_new_tokens=LIMIT, stop=stop))
    assert [type(event) for event in events if isinstance(event, Step)] == []
    assert isinstance(events[-1], End)
    assert events[-1].reason == "stopped"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampling_repeats_with_its_seed(architecture, model, processor):
    options = {"temperature": 1.5, "top_p": 0.95}
    first = run(model, processor, seed=7, **options).of(End)[0].tokens
    torch.manual_seed(99)
    torch.rand(5)
    assert run(model, processor, seed=7, **options).of(End)[0].tokens == first
    others = [run(model, processor, seed=seed, **options).of(End)[0].tokens for seed in (8, 9)]
    assert any(tokens != first for tokens in others)


def test_sampling_leaves_the_global_generator_alone(small):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(*small, temperature=1.0, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_temperature_zero_is_greedy_whatever_top_p_and_seed(small):
    greedy = run(*small).of(End)[0].tokens
    assert run(*small, temperature=0.0, top_p=0.5, seed=3).of(End)[0].tokens == greedy
    assert run(*small, temperature=2.0, top_p=1e-6, seed=3).of(End)[0].tokens == greedy
    assert run(*small, temperature=1e-4, seed=3).of(End)[0].tokens == greedy


def test_samples_lie_in_the_nucleus_and_leave_the_mode(small):
    """Each sampled token is in the smallest set of best tokens whose probability reaches top_p, by the oracle's logits."""
    model, processor = small
    temperature, top_p, off_mode = 1.7, 0.6, 0
    for seed in range(4):
        trace = run(model, processor, temperature=temperature, top_p=top_p, seed=seed)
        tokens = list(trace.of(End)[0].tokens)
        truth = oracle.run(model, row_of(model, processor, trace), oracle.AVL(S=45, C=30, K=3, P=70, T=60), LIMIT, feed=tokens)
        for logits, token in zip(truth.logits, tokens, strict=True):
            probability, order = torch.softmax(logits / temperature, -1).sort(descending=True)
            rank = order.tolist().index(token)
            assert float(probability[:rank].sum()) < top_p + 1e-5
            off_mode += rank > 0
    assert off_mode > 5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_several_pictures(architecture, model, processor):
    pictures = [picture(1), picture(2, 20, 56), picture(3, 28, 28)]
    trace = run(model, processor, image=pictures)
    row = row_of(model, processor, trace, pictures)
    assert [trace.start.n_image, trace.start.n_text] == [row.n_image, row.n_text]
    assert list(trace.of(End)[0].tokens) == oracle.run(model, row, oracle.AVL(S=45, C=30, K=3, P=70, T=60), LIMIT).tokens


def test_pictures_of_any_mode_are_taken(small):
    """Gray, palette, transparent and 16-bit pictures are converted, not refused."""
    for mode in ("L", "P", "RGBA", "LA", "CMYK", "1", "I;16"):
        image = picture(1).convert("I").convert("I;16") if mode == "I;16" else picture(1).convert(mode)
        assert len(run(*small, image=image, max_new_tokens=2).of(End)[0].tokens) == 2


@pytest.mark.parametrize("kind", [avl.Prompt, str])
def test_a_whole_prompt_is_taken_as_it_is(small, kind):
    """No template goes around it; where it might have been meant as a question, a warning says so."""
    model, processor = small
    row = request(1)
    trace = run(model, processor, avl.Full(), question=kind(row.text), image=list(row.images))
    told = [event.message for event in trace.of(Warning) if "it is the whole prompt" in event.message]
    assert len(told) == (kind is str)
    stock = model.generate(**encode(processor, [row]), max_new_tokens=LIMIT, do_sample=False)
    assert trace.start.prompt == row.text
    assert list(trace.of(End)[0].tokens) == stock[0, -LIMIT:].tolist()


def test_a_race_that_may_not_fit_says_what_would(small, monkeypatch):
    """A race holds the caches of all its arms until it ends; one after the other needs the largest of them."""
    from avl.engine import scheduler

    model, processor = small
    both = [avl.Full(), avl.AVL(S=45, C=30)]

    def told(policies, **options):
        events = list(avl.race(model, processor, picture(1), "what is this ?", policies, max_new_tokens=4, **options))
        assert isinstance(events[-1], End)
        return [event.message for event in events if isinstance(event, Warning) and "'isolated'" in event.message], events

    assert not told(both)[0]
    _, events = told(both)
    peaks = [event.stored_bytes for event in events if isinstance(event, Prefill)]
    monkeypatch.setattr(scheduler, "free_bytes", lambda _: int(max(peaks) * 1.2))
    ((message,), _) = told(both)
    assert "hold their caches together" in message
    assert not told(both, mode="isolated")[0]
    assert not told(both[:1])[0]


def test_a_race_of_eight_counts_the_caches_of_all(small, monkeypatch):
    """The warning comes from the bytes that the eight caches really hold together, to one part in a hundred."""
    from avl.engine import lanes, scheduler

    policies = [*policy_cases.POLICIES, avl.AVL(S=20)]
    caches = []
    monkeypatch.setattr(lanes, "make_cache", lambda *given: caches.append(avl.make_cache(*given)) or caches[-1])
    sums = []

    def told(free=None):
        if free is not None:
            monkeypatch.setattr(scheduler, "free_bytes", lambda _: free)
        caches.clear()
        messages = []
        for event in avl.race(*small, picture(1), "what is this ?", policies, max_new_tokens=4, batch=2):
            if isinstance(event, Warning) and "'isolated'" in event.message:
                messages.append(event.message)
            if isinstance(event, Prefill) and event.arm == 7:
                sums.append(sum(cache.allocated_bytes for cache in caches[-8:]))
        return messages

    assert told() == []
    held = sums[0]
    assert told(int(held * 1.01)) == []
    assert len(told(int(held * 0.99))) == 1


def test_arms_that_are_equal_get_numbers(small):
    start = next(avl.race(*small, picture(1), "what is this ?", [avl.Full(), avl.H2O(), avl.H2O()], max_new_tokens=2))
    assert [arm.label for arm in start.arms] == ["Full attention", f"{avl.H2O().label} (1)", f"{avl.H2O().label} (2)"]
    assert [arm.title for arm in start.arms] == ["Full attention", "H2O", "H2O"]
