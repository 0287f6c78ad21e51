"""How far policies agree with full attention along one long answer of its own, by decode step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from avl.cache.cache import make_cache
from avl.engine.agreement import compare
from avl.engine.cuda_graphs import make_decoder
from avl.evaluation.lengths.bins import means
from avl.policies import Full, Policy


@dataclass
class Along:
    """One policy along an answer.

    Attributes:
        label: the policy's.
        same: at every decode step, whether the likeliest token is full attention's.
        kl: KL(full || policy) in nats.
        surprise: minus the log-probability of the answer's next token, in nats; full attention's is in ``of_full``.
        of_full: full attention's own.
        stored: share of a full cache that is stored.
        read: share that is read.
    """

    label: str
    same: list[bool]
    kl: list[float]
    surprise: list[float]
    of_full: list[float]
    stored: list[float]
    read: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Return the means by bin as plain values; perplexity is exp of the mean surprise."""
        perplexity = {
            name: [float(np.exp(one)) for one in means(values)] for name, values in (("own", self.surprise), ("full", self.of_full))
        }
        ratio = [own / full for own, full in zip(*perplexity.values(), strict=True)]
        parts: dict[str, Sequence[float]] = {"agreement": self.same, "kl": self.kl, "stored": self.stored, "read": self.read}
        return {"policy": self.label, **{name: means(values) for name, values in parts.items()}, "perplexity, of full": ratio}


@torch.inference_mode()
def along(
    model: Any, inputs: dict[str, Any], answer: Sequence[int], policies: Sequence[Policy], tell: Callable[[str], None] = lambda label: None
) -> Iterator[Along]:
    """Feed full attention's answer through every policy (teacher forcing) and compare each step's distribution with full attention's.

    Args:
        model: an attached model.
        inputs: of one row.
        answer: tokens of the answer; those of all steps but the last are fed.
        policies: what to compare. Full attention's logits of all steps wait in host memory, in the model's dtype.
        tell: takes the label of what runs next.
    """
    tell(Full().label)
    full = [logits.clone() for logits, _ in _steps(model, inputs, answer, Full())]
    for policy in policies:
        tell(policy.label)
        found = Along(policy.label, [], [], [], [], [], [])
        for step, (logits, shares) in enumerate(_steps(model, inputs, answer, policy)):
            likeliest, kl, surprise = compare(full[step], logits, answer[step + 1])
            best, _, of_full = compare(full[step], full[step], answer[step + 1])
            found.same.append(likeliest == best)
            found.kl.append(kl)
            found.surprise.append(surprise)
            found.of_full.append(of_full)
            found.stored.append(shares[0])
            found.read.append(shares[1])
        yield found


def _steps(model: Any, inputs: dict[str, Any], answer: Sequence[int], policy: Policy) -> Iterator[tuple[torch.Tensor, tuple[float, float]]]:
    """Yield logits ``[V]`` on the host of every decode step, and the shares of a full cache stored and read."""
    cache = make_cache(model, inputs, policy, max_new_tokens=len(answer))
    decoder = make_decoder(model, cache)
    decoder.prefill(inputs)
    length, layers = cache.rows[0].length, len(cache.layers)
    for step, token in enumerate(answer[:-1], 1):
        logits = decoder.step(torch.tensor([token], device=model.device))[0].cpu()
        full = layers * (length + step)
        yield logits, (sum(cache.stored_tokens) / full, sum(cache.read_tokens) / full)
