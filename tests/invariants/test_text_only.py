"""Invariants of prompts without image: of language models that take none, of the families that do, and of rows beside others with one."""

from __future__ import annotations

import functools
import warnings

import family_oracle
import oracle
import pytest
import torch
import transformers
from observed import converse, generate
from random_models import PAD, WORDS
from test_families import assert_close, check_every_step, decoded, plain
from test_families import made as made_family
from test_oracle import check_sets
from tiny_families import MODELS
from tiny_families.base import HEAD_DIM, KV_HEADS, LAYERS, encode, text_options, vocabulary

import avl
from avl.attention.prefill import MANY_PASSES
from avl.models.families import FAMILIES, describe, family_of
from avl.policies.cost import PromptShape, layer_cost, stored_after_prefill

STEPS = 9
ALONE = sorted(name for name, family in FAMILIES.items() if not family.pictures)
SEEING = sorted(name for name, tiny in MODELS.items() if family_of(tiny.config()).placeholders)
NAMES = [*ALONE, *SEEING]
NEEDS_IMAGES = "hold no image|holds no image"

CASES = {
    "full": (avl.Full(), oracle.Full()),
    "avl-T": (avl.AVL(S=45, C=30, K=3, P=70, T=60), oracle.AVL(S=45, C=30, K=3, P=70, T=60)),
    "avl": (avl.AVL(S=45, C=30, K=3, P=70), oracle.AVL(S=45, C=30, K=3, P=70)),
    "spread": (avl.AVL(S=45, C=30, K=2, T=50, spread=33), oracle.AVL(S=45, C=30, K=2, T=50, spread=33)),
    "h2o": (avl.H2O(keep=50), oracle.H2O(keep=50)),
    "snapkv": (avl.SnapKV(keep=50, window=6, pool=3), oracle.SnapKV(keep=50, window=6, pool=3)),
    "pyramidkv": (avl.PyramidKV(keep=40, window=4, pool=3, beta=5), oracle.PyramidKV(keep=40, window=4, pool=3, beta=5)),
    "streaming": (avl.StreamingLLM(keep=40), oracle.StreamingLLM(keep=40)),
    "fastv": (avl.FastV(layer=2, keep=50), oracle.FastV(layer=2, keep=50)),
}


def language_model_of(kind):
    """A random ``{kind}ForCausalLM``."""
    options = {"sliding_window": None} if kind == "Mistral" else {}
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**text_options(**options)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.2)
            else:
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, PAD
    return model.requires_grad_(False).eval()


@functools.cache
def made(name):
    if name in SEEING:
        return made_family(name)[0]
    return avl.attach(language_model_of(FAMILIES[name].prefix))


def prompts(lengths=(17,), seed=0, name="llama"):
    """Random words, left-padded, and what the family's processor adds where there is no picture."""
    words = torch.randint(
        len(vocabulary()) - len(WORDS), len(vocabulary()), (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed)
    )
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    more = {"token_type_ids": torch.zeros_like(words)} if name == "paligemma" else {}
    return {"input_ids": torch.where(mask, words, PAD), "attention_mask": mask.long(), **more}


@pytest.fixture(autouse=True)
def quiet():
    """A-VL and FastV say that there is no image; a test asks for it, the others do not mind."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f".*({NEEDS_IMAGES})")
        yield


@pytest.mark.parametrize("lengths", [(17,), (17, 30, 9)], ids=["alone", "ragged"])
@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_full_is_generate(name, lengths):
    """In logits and tokens, also after a prompt with pictures, whose positions a model may remember."""
    model, inputs = made(name), prompts(lengths, name=name)
    if name in SEEING:
        model(**encode(MODELS[name], made_family(name)[1]))
    tokens, expected = plain(model, inputs)
    observed = generate(model, inputs, avl.Full(), STEPS, sets=False)
    assert observed.tokens == tokens.tolist()
    assert_close(observed.logits, expected)
    if name in SEEING:
        model(**encode(MODELS[name], made_family(name)[1]))
    decoder, found = decoded(model, inputs, tokens)
    assert_close(found, expected)
    assert (decoder.unfused is None) == (name in ALONE or MODELS[name].fused)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [*ALONE, "qwen2_5_vl", "gemma3"])
@torch.inference_mode()
def test_every_step_is_the_oracles(name, case):
    observed = check_every_step(made(name), prompts((23,)), *CASES[case])
    assert observed.cache.image_sets() == [([], [])] * LAYERS


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_counts_are_the_cost_models(case):
    model, lengths = made("llama"), (17, 30, 9)
    policy = CASES[case][0]
    feed = [torch.randint(30, 100, (STEPS,)).tolist() for _ in lengths]
    states = generate(model, prompts(lengths), policy, STEPS, feed=feed, sets=False).states
    shapes = [PromptShape(0, length, STEPS, LAYERS) for length in lengths]
    for t, state in enumerate(states):
        costs = [[layer_cost(policy, shape, layer, t) for shape in shapes] for layer in range(LAYERS)]
        assert state.stored == [sum(cost.stored for cost in rows) for rows in costs], t
        assert state.stored_bytes == sum(state.stored) * 2 * KV_HEADS * HEAD_DIM * 4
        assert state.read == [sum(cost.read for cost in rows) for rows in costs], t


@torch.inference_mode()
def test_sums_of_many_columns():
    """More text than passes of attention are worth: the sums of padded rows, which have no log-sum-exp, are those of the row alone."""
    model, inputs, policy = made("llama"), prompts((90, 130, 110)), avl.AVL(S=45, T=50)
    assert MANY_PASSES * HEAD_DIM < 90
    feed = torch.randint(30, 100, (3, STEPS), generator=torch.Generator().manual_seed(4)).tolist()
    together = generate(model, inputs, policy, STEPS, feed=feed)
    for row, length in enumerate((90, 130, 110)):
        alone = {key: value[row : row + 1, -length:] for key, value in inputs.items()}
        wanted = family_oracle.run(model, alone, oracle.AVL(S=45, C=None, K=3, P=None, T=50), STEPS, feed[row])
        assert [[one.text for one in state.sets[row]] for state in together.states] == [[one.text for one in step] for step in wanted.sets]
        assert_close([logits[row].double() for logits in together.logits], wanted.logits)


@torch.inference_mode()
def test_fastv_is_full_attention():
    model, inputs = made("llama"), prompts((17, 30))
    one, two = (generate(model, inputs, policy, STEPS) for policy in (avl.FastV(), avl.Full()))
    assert all(torch.equal(a, b) for a, b in zip(one.logits, two.logits, strict=True))
    assert [state.stored for state in one.states] == [state.stored for state in two.states]


@pytest.mark.parametrize(
    "policy", [avl.H2O(), avl.SnapKV(window=8), avl.PyramidKV(window=8), avl.StreamingLLM(), avl.Full()], ids=lambda p: p.name
)
def test_a_share_stored_without_image(policy):
    share = 1.0 if policy.budget is None else 0.6
    chosen = policy.at_stored(share, 0, 200, 32)
    assert abs(stored_after_prefill(chosen, PromptShape(0, 200, 0, 32)) - share * 200 * 32) <= 32
    if policy.budget is None:
        with pytest.raises(ValueError, match="stores everything"):
            policy.at_stored(0.6, 0, 200, 32)


@pytest.mark.parametrize("policy", [avl.AVL(S=45), avl.FastV()], ids=lambda p: p.name)
def test_no_share_of_no_image(policy):
    """Their budgets are of image tokens: all text is stored."""
    with pytest.raises(ValueError, match=r"cannot store 60\.0% of 200 tokens"):
        policy.at_stored(0.6, 0, 200, 32)


class TestRowsBesideOthers:
    """Rows without picture in a batch with pictures."""

    @staticmethod
    def inputs(name):
        tiny, processor = MODELS[name], made_family(name)[1]
        return dict(encode(tiny, processor, (((40, 30),), (), ((90, 40),))))

    @pytest.mark.parametrize("name", sorted(set(SEEING) - {"paligemma"}))
    @torch.inference_mode()
    def test_full_is_generate(self, name):
        model, inputs = made(name), self.inputs(name)
        counts = (inputs["input_ids"] == describe(model).image_token_id).sum(1)
        assert counts.bool().tolist() == [True, False, True]
        tokens, expected = plain(model, inputs)
        observed = generate(model, inputs, avl.Full(), STEPS, sets=False)
        assert observed.tokens == tokens.tolist()
        assert_close(observed.logits, expected)
        assert_close(decoded(model, inputs, tokens)[1], expected)

    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("name", ["llava-llama", "qwen2_5_vl", "gemma3"])
    @torch.inference_mode()
    def test_a_row_is_what_it_is_alone(self, name, case):
        """The row without picture, with its sets and counts, and the row with one."""
        model, inputs = made(name), self.inputs(name)
        policy = CASES[case][0]
        feed = torch.randint(30, 100, (3, STEPS), generator=torch.Generator().manual_seed(3))
        together = generate(model, inputs, policy, STEPS, feed=feed.tolist())
        pad = int((1 - inputs["attention_mask"][1]).sum())
        alone = {key: inputs[key][1:2, pad:] for key in ("input_ids", "attention_mask")}
        separate = generate(model, alone, policy, STEPS, feed=feed[1:2].tolist())
        assert_close([logits[1] for logits in together.logits], [logits[0] for logits in separate.logits])
        for one, other in zip(together.states, separate.states, strict=True):
            assert one.sets[1] == other.sets[0]
        found = decoded(model, inputs, feed, policy)[1]
        assert_close(found, together.logits)


class TestRecording:
    """The attention of a language model's answer, the counterpart of the paper's Figure 1."""

    @pytest.mark.parametrize("case", ["full", "avl-T", "h2o"])
    @torch.inference_mode()
    def test_shares_add_up(self, case):
        model, inputs = made("llama"), prompts((23,))
        cache = avl.make_cache(model, inputs, CASES[case][0], max_new_tokens=4)
        recorder = cache.record()
        seen = []
        model.generate(
            **inputs,
            past_key_values=cache,
            max_new_tokens=4,
            do_sample=False,
            logits_processor=[lambda ids, scores: seen.append(recorder.layers()) or scores],
        )
        assert len(seen) == 4
        for t, layers in enumerate(seen):
            for layer in layers:
                system, image, instruction, generated, between = layer.shares
                assert between == 0
                assert layer.image.shape == (0,)
                assert system == image == 0
                assert instruction + generated == pytest.approx(1, abs=1e-5)
                assert (generated > 0) == (t > 0)

    @torch.inference_mode()
    def test_full_attentions_scores_are_eager_weights(self):
        model, inputs = made("llama"), prompts((23,))
        cache = avl.make_cache(model, inputs, avl.Full(), max_new_tokens=4)
        recorder = cache.record()
        model(**inputs, past_key_values=cache)
        model(input_ids=torch.tensor([[40]]), past_key_values=cache)
        eager = language_model_of("Llama")
        eager.set_attn_implementation("eager")
        weights = eager(torch.cat([inputs["input_ids"], torch.tensor([[40]])], dim=1), output_attentions=True).attentions
        for layer, (scores, positions) in zip(weights, recorder._raw, strict=True):
            expected = layer[0, :, -1].mean(0)
            torch.testing.assert_close(scores.reshape(-1)[positions.reshape(-1).argsort()], expected, rtol=1e-4, atol=1e-6)


class TestSaid:
    """What a caller is told."""

    @pytest.mark.parametrize("policy", [avl.AVL(S=45, T=60), avl.FastV()], ids=lambda policy: policy.name)
    def test_a_policy_for_image_tokens_warns(self, policy):
        with pytest.warns(UserWarning, match=f"the prompts hold no image: {policy.label} has only the text of it to act on") as caught:
            avl.make_cache(made("llama"), prompts(), policy)
        assert [one.filename for one in caught] == [__file__]
        with pytest.warns(UserWarning, match="row 1 of the batch holds no image"):
            avl.make_cache(made("llava-llama"), TestRowsBesideOthers.inputs("llava-llama"), policy)

    @pytest.mark.parametrize(
        "policy", [avl.Full(), avl.H2O(), avl.SnapKV(), avl.PyramidKV(), avl.StreamingLLM()], ids=lambda policy: policy.name
    )
    def test_others_do_not(self, policy, recwarn):
        avl.make_cache(made("llama"), prompts(), policy)
        avl.make_cache(made("llava-llama"), TestRowsBesideOthers.inputs("llava-llama"), policy)
        avl.make_cache(made("llava-llama"), dict(encode(MODELS["llava-llama"], made_family("llava-llama")[1])), policy)
        assert not recwarn

    @pytest.mark.parametrize("name", ["llava-llama", "qwen2_vl", "gemma3"])
    def test_a_picture_without_its_tokens(self, name):
        """The placeholder was forgotten."""
        pictured = dict(encode(MODELS[name], made_family(name)[1]))
        with pytest.raises(ValueError, match="row 0 of the batch has no image: put an image placeholder"):
            avl.make_cache(made(name), {**pictured, **prompts()}, avl.Full())

    @pytest.mark.parametrize("name", ["blip-2", "instructblip"])
    def test_a_family_that_always_needs_a_picture(self, name):
        with pytest.raises(ValueError, match="row 0 of the batch has no image"):
            avl.make_cache(made_family(name)[0], prompts(), avl.Full())

    @pytest.mark.parametrize("run", [avl.stream, avl.race])
    def test_questions_about_pictures_need_a_model_that_sees(self, run):
        with pytest.raises(TypeError, match="LlamaForCausalLM takes no pictures"):
            run(made("llama"), made_family("llava-llama")[1], [], "what is it", avl.Full())

    def test_load(self, tmp_path):
        language_model_of("Llama").save_pretrained(tmp_path)
        with pytest.raises(TypeError, match=r"takes no pictures.*avl\.attach"):
            avl.load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["full", "avl-T", "h2o", "snapkv", "pyramidkv", "streaming"])
@torch.inference_mode()
def test_real_scale(case):
    """32 layers, heads of 128, prompts of 700 to 1500 tokens in one batch: every row's counts, and its logits as they are alone."""
    sizes = {"num_hidden_layers": 32, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**text_options(**sizes, max_position_embeddings=4096))
    model = transformers.LlamaForCausalLM(config).requires_grad_(False).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, PAD
    avl.attach(model)
    lengths, policy = (1500, 700, 1200), CASES[case][0]
    inputs, feed = prompts(lengths), [torch.randint(30, 100, (4,)).tolist() for _ in lengths]
    together = generate(model, inputs, policy, 4, feed=feed, sets=False)
    for t, state in enumerate(together.states):
        for layer in (0, 17, 31):
            costs = [layer_cost(policy, PromptShape(0, length, 4, 32), layer, t) for length in lengths]
            assert state.stored[layer] == sum(cost.stored for cost in costs)
            assert state.read[layer] == sum(cost.read for cost in costs)
    alone = {key: value[1:2, -700:] for key, value in inputs.items()}
    separate = generate(model, alone, policy, 4, feed=feed[1:2], sets=False)
    assert_close([logits[1] for logits in together.logits], [logits[0] for logits in separate.logits])


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_rows_of_any_length_run_in_pieces(name, monkeypatch):
    """Without pictures too, where a decoder embeds the tokens itself."""
    model, inputs = made(name), prompts((17, 9, 17, 12, 9), name=name)
    tokens = torch.randint(0, len(vocabulary()), (5, STEPS), generator=torch.Generator().manual_seed(1))
    whole = decoded(model, inputs, tokens, avl.H2O(keep=50))[1]
    monkeypatch.setattr("avl.engine.decoder.PROMPT_TOKENS", 40)
    assert_close(decoded(model, inputs, tokens, avl.H2O(keep=50))[1], whole)


@pytest.mark.parametrize(("name", "case"), [("qwen3", "avl-T"), ("llama", "h2o"), ("llava_next", "spread")])
@torch.inference_mode()
def test_later_turns_are_the_oracles(name, case):
    """A conversation without a picture, of a language model and of a family that could see one."""
    policy, rule = CASES[case]
    inputs, turns = prompts(name=name), (([50, 61, 75, 80, 33, 34], 5), ([51, 62], 3))
    feed = torch.randint(30, 100, (12,), generator=torch.Generator().manual_seed(5)).tolist()
    observed = converse(made(name), inputs, policy, 4, feed, turns)
    expected = family_oracle.run(made(name), inputs, rule, 4, feed, turns)
    check_sets(observed, [expected])
    assert_close([logits[0].double() for logits in observed.logits], expected.logits)
