"""Count the kernels that a GPU would compile for one question after another; run as a script, in a process that does not interpret.

The engine itself runs, on a CPU, with launches recorded and not run: answers are noise, the launches are those of a GPU. Prints as JSON,
for every model, policy and number of rows, the variants that each question added; then which of the kernel benchmark's attention
kernels the engine does not launch.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from launches import Launch, recorded
from random_models import build_model, encode, request, shared_processor

import avl
import avl.kernels
from avl.engine.cuda_graphs import GraphDecoder
from avl.engine.fused import FusedLayers
from avl.kernels.bench.baselines import ours
from avl.kernels.bench.cases import Data, Shape
from avl.kernels.core import triton as core

STEPS = 3
AVL = avl.AVL(S=45, C=30, K=2, P=80, T=50)
CASES = [  # model, policy, rows
    ("llava-llama", avl.Full(), 1),
    ("llava-llama", AVL, 1),
    ("llava-llama", AVL, 2),
    ("llava-llama", avl.H2O(keep=50), 1),
    ("next-mistral", AVL, 1),
]


def answer(model: torch.nn.Module, architecture: str, policy: avl.Policy, words: int, rows: int, fused: bool = True) -> None:
    """Run the prompt and STEPS steps of a question of so many words, its layers fused or by the model's modules."""
    batch = [request(row, before=3 + words % 3, after=words) for row in range(1, rows + 1)]
    inputs = dict(encode(shared_processor(architecture), batch))
    cache = avl.make_cache(model, inputs, policy, max_new_tokens=STEPS)
    decoder = GraphDecoder(model, cache)
    decoder._layers = FusedLayers(model, cache, merged=True) if fused else None
    tokens = decoder.prefill(inputs).argmax(dim=-1)
    for _ in range(STEPS):
        decoder.step(tokens)


def count(launches: list[Launch], known: set) -> int:
    """Return how many variants are new, and note them."""
    before = len(known)
    known |= {launch.key for launch in launches}
    return len(known) - before


@torch.inference_mode()
def main() -> None:
    # small tiles, so that the rows of a small model are cut into more parts the longer they are
    core.tiling_for = lambda capability: core.Tiling(vector_tile_bytes=256, matrix_tile_bytes=256)
    avl.kernels.resolve_impl = lambda *_, **__: "triton"
    added: dict[str, list[int]] = {}
    splits: dict[str, list[int]] = {}
    attention: set = set()
    torch.set_num_threads(1)  # as the other tests: small products wait for their threads
    models = {name: avl.attach(build_model(name, num_hidden_layers=2)) for name in ("llava-llama", "next-mistral")}
    for architecture, policy, rows in CASES:
        known: set = set()
        case = f"{architecture} {policy.label} {rows}"
        added[case], splits[case] = [], []
        for words in range(5, 25):
            with recorded(90) as launches:
                answer(models[architecture], architecture, policy, words, rows)
            added[case].append(count(launches, known))
            splits[case] += [launch.numbers["splits"] for launch in launches if "splits" in launch.numbers]
        if architecture == "llava-llama":
            # the benchmark attends to tokens that are stored, as layers that are not fused do
            with recorded(90) as launches:
                answer(models[architecture], architecture, policy, 7, rows, fused=False)
            attention |= {launch.key for launch in launches}
    print(json.dumps({"added": added, "splits": {case: [min(seen), max(seen)] for case, seen in splits.items()}}))

    with recorded(90) as launches:
        data = Data(Shape("small", 4, 4, 16, 61, 9, 33), 2, torch.device("cpu"), torch.float32, "tokens", 0)
        for reads, scores in (("scattered", "text"), ("scattered", "all"), ("all", "none")):
            ours("", "triton", reads, scores).build(data, 0)()
    print(json.dumps([launch.key for launch in launches if launch.key not in attention]))
    print(json.dumps(sorted({launch.name for launch in launches})))


main()
