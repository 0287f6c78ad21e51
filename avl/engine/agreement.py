"""Agreement: how far each policy agrees with full attention on full attention's own answer, token by token.

One early different word makes two answers differ from there on, whatever the policy does later. So full attention's answer is fed through
every policy (teacher forcing): each token is a decode step of the policy's own cache, with its core and update steps, and the step's logits
are compared with those of full attention after the same tokens. Logits are the model's own, at temperature 1: before penalties,
temperature and nucleus. One row runs, whatever the batch; full attention's logits of the whole answer wait in host memory (tokens x
vocabulary, in the model's dtype).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from avl.engine.cuda_graphs import make_decoder
from avl.engine.decoder import Stopped
from avl.engine.lanes import Job, Lane
from avl.engine.not_finite import NotFiniteError, explain
from avl.engine.runner import Runner
from avl.engine.text import TextStream
from avl.models.inputs import first
from avl.policies import Full, Policy
from avl.telemetry import Meter
from avl.trace import MOST_NATS, Agreement

_BEFORE = 8  # tokens that a single token's text is decoded after: a piece of a word looks different at the start of a text


def agreements(job: Job, finished: Sequence[Runner], stop: threading.Event) -> Iterator[Agreement]:
    """Feed full attention's answer through every policy of a finished request and yield one event per arm, in order.

    The answer is that of the request's first arm under full attention. Where there is none, full attention answers first, unreported, with
    the request's settings. Nothing is yielded for a policy that ``stop`` interrupts, or if there is no answer.

    Args:
        job: what was run.
        finished: its closed runs.
        stop: ends this before the next step.

    Raises:
        NotFiniteError: some logits are not numbers.
    """
    alone = replace(job, inputs=first(job.inputs, job.request.batch))
    runs = sorted(finished, key=lambda runner: runner.number)
    reference = next((runner for runner in runs if isinstance(runner.policy, Full)), None)
    number = None if reference is None else reference.number
    tokens = _answer(alone, len(runs), stop) if reference is None else reference.answer
    if not tokens:
        return
    full = list(_logits(alone, Full(), number, tokens, stop))
    if len(full) < len(tokens):
        return
    measured = [compare(logits, logits, token) for logits, token in zip(full, tokens, strict=True)]
    best, full_nll = [one[0] for one in measured], tuple(one[2] for one in measured)
    texts = _texts(job, tokens)
    for runner in runs:
        if not isinstance(runner.policy, Full):
            steps = zip(_logits(alone, runner.policy, runner.number, tokens, stop), full, tokens, strict=False)
            measured = [compare(of_full, logits, token) for logits, of_full, token in steps]
            if len(measured) < len(tokens):
                return
        else:
            measured = [(token, 0.0, nll) for token, nll in zip(best, full_nll, strict=True)]
        top = tuple(None if one[0] == likeliest else one[0] for one, likeliest in zip(measured, best, strict=True))
        yield Agreement(
            arm=runner.number,
            reference=number,
            tokens=tuple(tokens),
            texts=texts,
            top=top,
            top_texts=tuple(None if token is None else _text(job, tokens[:t], token) for t, token in enumerate(top)),
            kl=tuple(one[1] for one in measured),
            nll=tuple(one[2] for one in measured),
            full_nll=full_nll,
        )


def _answer(job: Job, number: int, stop: threading.Event) -> list[int]:
    """Return full attention's answer, empty where it was stopped."""
    runner = Runner(Lane(number, Full(), job), Meter(job.model.device))
    while runner.reason is None:
        if stop.is_set():
            return []
        try:
            for _ in runner.prefill(stop) if runner.tokens is None else runner.step():
                pass
        except NotFiniteError as error:
            raise NotFiniteError(str(error), None) from None
    return [] if runner.reason == "stopped" else runner.answer


def _logits(job: Job, policy: Policy, number: int | None, tokens: Sequence[int], stop: threading.Event) -> Iterator[torch.Tensor]:
    """Yield logits ``[V]`` of the pass before each of the tokens, on the host; ends early where ``stop`` is set."""
    cache = job.make_cache(policy)
    decoder = make_decoder(job.model, cache)
    for t in range(len(tokens)):
        if stop.is_set():
            return
        if t:
            logits = decoder.step(torch.tensor([tokens[t - 1]], device=job.model.device))[0]
        else:
            try:
                logits = decoder.prefill(job.inputs, stop)[0]
            except Stopped:
                return
        logits = logits.to("cpu", copy=True)  # the next step may overwrite them
        if not bool(logits.max().isfinite()):
            raise NotFiniteError(explain(cache, 0, t, ()), number)
        yield logits


def compare(full: torch.Tensor, ours: torch.Tensor, token: int) -> tuple[int, float, float]:
    """Compare two distributions over the vocabulary, in float64.

    Args:
        full: logits ``[V]`` of full attention.
        ours: those of a policy.
        token: the next token of the answer.

    Returns:
        The policy's likeliest token; KL(full || policy) in nats; minus the log-probability of ``token`` under the policy, in nats.
    """
    p, q = (logits.double().log_softmax(-1) for logits in (full, ours))
    divergence = torch.where(p.exp() > 0, p.exp() * (p - q), 0.0).sum()
    return int(ours.argmax()), _rounded(float(divergence)), _rounded(-float(q[token]))


def _rounded(nats: float) -> float:
    # rounding may leave the divergence of equal distributions below 0; a token that a model rules out has no finite number
    return float(f"{min(max(0.0, nats), MOST_NATS):.4g}")


def _texts(job: Job, tokens: Sequence[int]) -> tuple[str, ...]:
    """Return the piece of text of each token of the answer; they add up to it, but for an end of sequence, which has its name."""
    stream, found = TextStream(job.processor.tokenizer), list[str]()
    for token in tokens:
        found.append(_name(job, token) if token in job.settings.eos else stream.add(token))
    last = max((t for t, token in enumerate(tokens) if token not in job.settings.eos), default=None)
    if last is not None:
        found[last] += stream.finish()
    return tuple(found)


def _text(job: Job, before: Sequence[int], token: int) -> str:
    """Return the text that a token would add to an answer, or its name where it adds none, such as an end of sequence."""
    tokenizer = job.processor.tokenizer
    if token in job.settings.eos or token in tokenizer.all_special_ids:
        return _name(job, token)
    some = list(before[-_BEFORE:])
    without, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (some, [*some, token]))
    text = whole[len(without) :] if whole.startswith(without) else tokenizer.decode([token])
    return text if text and "\ufffd" not in text else _name(job, token)


def _name(job: Job, token: int) -> str:
    name: Any = job.processor.tokenizer.convert_ids_to_tokens(token)
    return name if isinstance(name, str) else f"<{token}>"  # a head may be wider than the vocabulary
