"""The whole decode engine on the Triton kernels, attention and layers, against the same engine on the PyTorch path."""

import pytest
import torch
from random_models import ARCHITECTURES, LAYERS, RAGGED, build_model, encode, request, shared_processor
from tiny_families import MODELS
from tiny_families.base import encode as encode_family
from triton_here import COMPILED, why_no_triton

import avl
import avl.attention.decode
import avl.cache.joined
import avl.engine.fused
import avl.kernels
from avl.engine.cuda_graphs import GraphDecoder
from avl.engine.decoder import Decoder
from avl.engine.fused import FusedLayers

REASON = why_no_triton()
pytestmark = [pytest.mark.skipif(REASON is not None, reason=REASON or ""), *COMPILED]
STEPS = 4  # two updates of K=2, with a step between them
SHALLOW = 2  # layers: a first, a last, and what passes between them
AVL = avl.AVL(S=45, C=30, K=2, P=80, T=50)
CASES = [  # the interpreter is slow: each policy and architecture once, and one of them with all layers
    ("llava-llama", AVL, Decoder, True),
    ("next-mistral", AVL, GraphDecoder, True),
    ("llava-llama", avl.AVL(S=45, C=30, K=2, P=80, T=50, spread=33), GraphDecoder, True),
    ("next-mistral", avl.Full(), GraphDecoder, False),
    ("llava-llama", avl.H2O(keep=50), GraphDecoder, False),
    ("next-llama", avl.StreamingLLM(keep=40), GraphDecoder, False),
    ("next-mistral", avl.PyramidKV(keep=40, window=4, pool=3, beta=5), GraphDecoder, False),
    ("qwen2_5_vl", AVL, GraphDecoder, True),  # biases, and positions in three dimensions
    ("qwen3_vl", AVL, GraphDecoder, True),  # norms of heads
]


@pytest.fixture
def triton_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What "auto" means on a GPU."""
    chosen = avl.kernels.resolve_impl
    monkeypatch.setattr(avl.kernels, "resolve_impl", lambda device, impl="auto", **facts: chosen(device, "triton", **facts))


def answer(decoder: Decoder, inputs: dict, tokens: list | None = None) -> tuple[list, list]:
    """Logits of the prompt and of STEPS steps fed with ``tokens``, or greedily, and the tokens fed."""
    logits, fed = [decoder.prefill(inputs).clone()], []
    for number in range(STEPS):
        fed.append(logits[-1].argmax(dim=-1) if tokens is None else tokens[number])
        logits.append(decoder.step(fed[-1]).clone())
    return logits, fed


@pytest.mark.parametrize(("architecture", "policy", "kind", "merged"), CASES)
@torch.inference_mode()
def test_decoder_on_triton_gives_the_steps_of_the_pytorch_path(architecture, policy, kind, merged, triton_everywhere, monkeypatch):
    if architecture in ARCHITECTURES:
        depth = LAYERS if kind is Decoder else SHALLOW
        model, both = build_model(architecture, num_hidden_layers=depth), encode(shared_processor(architecture), [request(1), request(2)])
    else:
        model = MODELS[architecture].model()
        both = encode_family(MODELS[architecture], MODELS[architecture].processor())
        both = {name: torch.cat([value, value]) for name, value in both.items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = avl.attach(model.to(device))
    inputs = {name: value.to(device) for name, value in both.items()}
    caches = [avl.make_cache(model, inputs, policy, max_new_tokens=STEPS) for _ in range(2)]
    decoder = kind(model, caches[0])
    decoder._layers = FusedLayers(model, caches[0], merged=merged)
    logits, fed = answer(decoder, inputs)
    monkeypatch.undo()  # from here on "auto" is the PyTorch path again, on a CPU
    expected, _ = answer(Decoder(model, caches[1]), inputs, fed)
    for one, two in zip(logits, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    for row in range(2):
        assert caches[0].image_sets(row) == caches[1].image_sets(row)
        for layer in range(model.config.get_text_config().num_hidden_layers):
            assert caches[0].text_positions(layer, row) == caches[1].text_positions(layer, row)


@pytest.mark.parametrize(
    ("architecture", "policy", "kind"),
    [("llava-llama", AVL, GraphDecoder), ("next-mistral", avl.H2O(keep=50), Decoder), ("next-mistral", AVL, Decoder)],
)
@torch.inference_mode()
def test_rows_of_any_layouts_together_on_triton(architecture, policy, kind, triton_everywhere, monkeypatch):
    """One storage that all rows share, lengths and slots of their own."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = avl.attach(build_model(architecture, num_hidden_layers=SHALLOW).to(device))
    inputs = {name: value.to(device) for name, value in encode(shared_processor(architecture), RAGGED[:2]).items()}
    monkeypatch.setattr(avl.cache.joined, "joins", lambda device: True)
    cache = avl.make_cache(model, inputs, policy, max_new_tokens=STEPS)
    logits, fed = answer(kind(model, cache), inputs)
    assert cache.joined
    monkeypatch.undo()
    monkeypatch.setattr(avl.cache.joined, "joins", lambda device: False)
    apart = avl.make_cache(model, inputs, policy, max_new_tokens=STEPS)
    expected, _ = answer(Decoder(model, apart), inputs, fed)
    for one, two in zip(logits, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    for row in range(2):
        assert cache.image_sets(row) == apart.image_sets(row)


class Launches(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts what a GPU would launch for torch: operations that compute or copy."""

    FREE = frozenset((
        "alias", "as_strided", "detach", "empty", "empty_like", "expand", "flatten", "lift_fresh", "new_empty", "reshape", "resolve_conj",
        "resolve_neg", "select", "slice", "split", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view",
        "fill_",  # NaN in fresh memory, from conftest.py
    ))  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        if name not in self.FREE:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts calls of the interpreter")
@pytest.mark.parametrize("policy", [avl.Full(), AVL], ids=lambda policy: policy.label)
@pytest.mark.parametrize("rows", [1, 3])
@torch.inference_mode()
def test_decoder_step_on_triton_launches_little(policy, rows, triton_everywhere, monkeypatch):
    """Nine launches a layer, A-VL's bookkeeping included; what a step needs beside its layers does not grow with them.

    Rows of three layouts store their tokens in a launch of its own, and take one more where scores are kept: the window begins at another
    column in each. Kernels are counted and do not run: which are launched depends on shapes and on the number of the step alone.
    """
    from triton.runtime.interpreter import GridExecutor

    monkeypatch.setattr(avl.cache.joined, "joins", lambda device: True)
    launches: list[str] = []
    monkeypatch.setattr(GridExecutor, "__call__", lambda self, *args, **kwargs: launches.append(self.fn.__name__))
    monkeypatch.setattr("avl.kernels.core.triton._multiprocessors", lambda device: 132)  # so that the sequence is split
    counts = {}
    for depth in (2, 4):
        model, processor = avl.attach(build_model("llava-llama", num_hidden_layers=depth)), shared_processor("llava-llama")
        inputs = dict(encode(processor, [request(1), request(2, after=9), request(3, after=12)][:rows]))
        cache = avl.make_cache(model, inputs, policy, max_new_tokens=STEPS)
        decoder = GraphDecoder(model, cache)
        decoder._layers = FusedLayers(model, cache, merged=True)
        tokens = decoder.prefill(inputs).argmax(dim=-1)
        for _ in range(STEPS):
            launches.clear()
            with Launches() as torch_launches:
                tokens = decoder.step(tokens).argmax(dim=-1)
            counts[depth, cache.update_step] = len(launches) + len(torch_launches.names)
    for update in {update for _, update in counts}:
        per_layer = (counts[4, update] - counts[2, update]) / 2
        # an update step also keeps the scores of the image tokens
        assert per_layer <= 9 + update + (rows > 1) + (rows > 1 and policy is AVL)
        # what it begins with, its slot, last norm, output, eviction, argmax
        beside = 6 + 4 * update
        if rows > 1:
            beside += 40 + 30 * update
        assert counts[4, update] - 4 * per_layer <= beside
