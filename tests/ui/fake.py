"""A stand-in for the engine: the same events, made up from a seed, at a chosen pace. No model, no torch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from avl import trace
from avl.engine.follow_up import FollowUpRequest
from avl.engine.request import GenerationRequest
from avl.policies import Policy, PromptShape
from avl.policies.cost import layer_cost, pruned_from, step_cost
from avl.ui.prompts import Measure, PromptSize, seen_share
from avl.ui.settings import About

ANSWER = "The picture shows a small red house beside a tall green tree , a white sign with the word BREAD and a price tag of 12 dollars ."
WORDS = ANSWER.split()


def about(**changes: Any) -> About:
    facts: dict[str, Any] = {
        "name": "fake model",
        "layers": 8,
        "n_image": 576,
        "n_text": 40,
        "token_bytes": 8 * 2 * 256 * 4,
        "device": "cpu",
        "dtype": "float32",
        "bundled": True,
        "notes": ("A made-up model for tests.",),
    }
    return About(**{**facts, **changes})


def grids(n_side: int, size: tuple[int, int], kind: str) -> tuple[tuple[trace.Grid, ...], int]:
    """One square grid, or LLaVA-1.6's whole picture and tiles with newline columns, tiles of their own, two pictures, or no grid at all."""
    width, height = size
    whole = trace.Grid(0, 0, n_side, n_side, False, (0.0, 0.0, float(width), float(height)))
    if kind == "tiles":
        rows, cols = n_side + n_side // 2, 2 * n_side
        tiles = trace.Grid(0, n_side * n_side, rows, cols, True, (0.0, 0.0, float(width), float(height)))
        return (whole, tiles), n_side * n_side + rows * (cols + 1)
    if kind == "two":
        second = trace.Grid(1, n_side * n_side, n_side, n_side, False, (0.0, -height / 4, float(width), height * 5 / 4))
        return (whole, second), 2 * n_side * n_side
    if kind == "cropped":
        side = min(size)
        left, top = (width - side) / 2, (height - side) / 2
        return (trace.Grid(0, 0, n_side, n_side, False, (left, top, left + side, top + side)),), n_side * n_side
    if kind == "cut":  # 2 x 3 tiles, row by row, then the whole picture
        boxes = [(width * c / 3, height * r / 2, width * (c + 1) / 3, height * (r + 1) / 2) for r in range(2) for c in range(3)]
        boxes.append((0.0, 0.0, float(width), float(height)))
        each = n_side * n_side
        return tuple(trace.Grid(0, number * each, n_side, n_side, False, box) for number, box in enumerate(boxes)), 7 * each
    if kind == "nowhere":
        return (), n_side * n_side
    return (whole,), n_side * n_side


def measure_with(fake: Fake) -> Measure:
    """Count as the made-up engine does: every picture has a prompt's image tokens."""

    def measure(sizes: tuple[tuple[int, int], ...], question: str) -> PromptSize:
        blocks, n_image = grids(fake.side, sizes[0], fake.kind)
        return PromptSize(n_image * len(sizes), 40, seen_share(blocks[:1], sizes))

    return measure


class Fake:
    """``fake(request, stop)`` yields a run. ``log`` tells tests what happened to it."""

    def __init__(
        self,
        *,
        layers: int = 8,
        side: int = 24,
        kind: str = "one",
        pace: float = 0.01,
        prefill: float = 0.05,
        device_bytes: bool = False,
        fail_at: int | None = None,
        text: list[str] | None = None,
        differ_at: int = 9,
        refuse: str | None = None,
    ) -> None:
        self.layers, self.side, self.kind, self.pace, self.prefill = layers, side, kind, pace, prefill
        self.device_bytes, self.fail_at, self.differ_at = device_bytes, fail_at, differ_at
        self.words = text or WORDS
        self.refuse = refuse  # the sentence with which a run fails before its first event
        self.log: list[str] = []
        self.active = 0
        self.most_active = 0

    def __call__(self, request: GenerationRequest, stop: threading.Event) -> Iterator[trace.Event]:
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        self.log.append("begin")
        try:
            if self.refuse:
                raise ValueError(self.refuse)
            if self.active > 1:
                raise RuntimeError("two runs overlap on the device")
            yield from self._run(request, stop)
        finally:
            self.active -= 1
            self.log.append("freed")

    def _start(self, request: GenerationRequest) -> trace.Start:
        size = request.images[0].size
        blocks, n_image = grids(self.side, size, self.kind)
        shape = PromptShape(n_image, 40, request.max_new_tokens, self.layers)
        arms = tuple(self._arm(policy, shape) for policy in request.policies)
        if isinstance(request, FollowUpRequest):
            arms = self._later(request, arms, n_image)
        images = (size,) * (2 if self.kind == "two" else 1)
        return trace.Start(
            arms=arms,
            mode=request.mode,
            question=request.question,
            prompt=f"USER: <image>\n{request.question} ASSISTANT:",
            model={"name": "fake", "revision": None, "class": "Fake", "dtype": "float32", "device": "cpu", "layers": self.layers},
            machine={"cpu": "test machine", "threads": 1},
            date="2026-01-01T12:00:00",
            n_image=n_image,
            n_text=40,
            spans=(("system", 0, 5), ("image", 5, 5 + n_image), ("instruction", 5 + n_image, n_image + 40)),
            images=images,
            grids=blocks,
            layers=self.layers,
            token_bytes=self.layers * 2 * 256 * 4,
            batch=request.batch,
            limit=request.max_new_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            text=("<s>", "USER", ":", " \n", "", *(f" {word}" for word in (WORDS * 2)[:35])),
            turn=len(request.history) + 1 if isinstance(request, FollowUpRequest) else 1,
            questions=tuple(said.question for said in request.history) if isinstance(request, FollowUpRequest) else (),
        )

    @staticmethod
    def _later(request: FollowUpRequest, arms: tuple[trace.Arm, ...], n_image: int) -> tuple[trace.Arm, ...]:
        """Kept arms, then those that re-read: what was said before is 12 tokens a question, and the answers' own."""
        text = ("<s>", "USER", ":", " \n", "", *(f" {word}" for word in (WORDS * 2)[:35]))
        told = []
        for number, arm in enumerate(arms):
            said = sum(len(turn.answers[number]) + 12 for turn in request.history)
            more = replace(
                arm, answers=tuple(f"answer {len(turn.answers[number])}" for turn in request.history), new_tokens=14, n_text=40 + said,
                spans=(("system", 0, 5), ("image", 5, 5 + n_image), ("instruction", 5 + n_image, n_image + 40 + said)),
                text=(*text, *(f" {word}" for word in (WORDS * (1 + said // len(WORDS)))[:said])),
            )  # fmt: skip
            told.append(more)
        again = [
            replace(arm, label=f"{arm.label} re-read", reread=True, new_tokens=n_image + (arm.n_text or 0))
            for arm in told
            if request.reread
        ]
        return (*told, *again)

    @staticmethod
    def _arm(policy: Policy, shape: PromptShape) -> trace.Arm:
        costs = [step_cost(policy, shape, t) for t in range(1, shape.max_new_tokens)]
        predicted = tuple((int(cost.stored), int(cost.read)) for cost in costs)
        covers = [policy.cover(layer, shape) for layer in range(shape.n_layers)]
        spread = tuple(trace.pack_bits(cover.stored, shape.n_image) for cover in covers if cover)
        return trace.Arm(policy.label, policy.to_dict(), "reference (torch)", policy.title, pruned_from(policy, shape), predicted, spread)

    def _run(self, request: GenerationRequest, stop: threading.Event) -> Iterator[trace.Event]:
        start = self._start(request)
        yield start
        again = request.policies if isinstance(request, FollowUpRequest) and request.reread else ()
        arms = [_Arm(self, start, index, policy) for index, policy in enumerate((*request.policies, *again))]
        live = list(arms)
        while live:
            if request.mode == "isolated":
                arm = live[0]
            else:
                arm = min(live, key=lambda one: one.clock)
            if stop.is_set():
                for arm in live:
                    yield arm.end("stopped")
                return
            yield from arm.step()
            if arm.finished:
                live.remove(arm)
        for number in range(1, request.repeats):
            for arm in arms:
                if stop.is_set():
                    return
                time.sleep(self.pace)
                middle = arm.clock / len(arm.texts) * (1 + 0.02 * number)
                yield trace.Repeat(arm.index, number, self.prefill, middle, arm.clock, "length", tuple(arm.tokens))
        for arm in arms if request.scores else []:
            for t in range(len(arm.texts)):
                if stop.is_set():
                    return
                yield arm.attention(t)
        full = next((arm for arm in arms if arm.policy.name == "Full"), None)
        for arm in arms if request.agreement and not stop.is_set() else []:
            yield arm.agreement(full)


class _Arm:
    def __init__(self, fake: Fake, start: trace.Start, index: int, policy: Any) -> None:
        self.fake, self.start, self.index, self.policy = fake, start, index, policy
        self.rng = np.random.default_rng(index)
        self.clock, self.t, self.finished = 0.0, -1, False
        self.texts: list[str] = []
        self.tokens: list[int] = []
        self.times: list[float] = []
        self.bytes: list[tuple[int, int]] = []
        self.kept = self.pruned = None
        self.peak = 0
        n, layers = start.n_image, start.layers
        self.n_text = start.text_tokens(index)
        self.shape = PromptShape(n, self.n_text, start.limit, layers)
        # smooth bumps that differ per layer, so that pictures look like attention
        centers = self.rng.uniform(0, 1, (layers, 3, 2))
        at = np.array([[(i % fake.side) / fake.side, (i // fake.side % fake.side) / fake.side] for i in range(n)])
        self.bumps = np.stack([sum(np.exp(-((at - c) ** 2).sum(1) / 0.02) for c in center) for center in centers])

    @property
    def _forgets(self) -> bool:
        return (getattr(self.policy, "T", None) or 100) < 100

    def _scores(self) -> np.ndarray:
        return self.bumps + self.rng.uniform(0, 0.35, self.bumps.shape)

    def _covered(self, scores: np.ndarray, core: bool) -> np.ndarray:
        """Put the tokens that are held (or always in the core) whatever they score above all others, but for those that are gone (-1)."""
        lifted = scores.copy()
        for layer, row in enumerate(lifted):
            cover = self.policy.cover(layer, self.shape)
            if cover:
                row[list(cover.stored[: cover.core] if core else cover.stored)] += 100
        return np.where(scores < 0, scores, lifted)

    def _top(self, scores: np.ndarray, count: int, among: np.ndarray | None = None) -> tuple[str, ...]:
        rows = scores if among is None else np.where(among, scores, -1)
        return tuple(trace.pack_bits(np.argsort(-row)[:count].tolist(), self.start.n_image) for row in rows)

    def step(self) -> Iterator[trace.Event]:
        fake, start = self.fake, self.start
        self.t += 1
        if fake.fail_at is not None and self.t == fake.fail_at:
            raise RuntimeError("made-up failure with /a/path")
        wait = fake.prefill if self.t == 0 else fake.pace
        time.sleep(wait)
        ms = max(0.4, wait * 1000) * self.rng.uniform(0.9, 1.1) * (1.03 if self.policy.name != "Full" else 1)
        self.clock += ms
        words = fake.words
        word = words[self.t % len(words)]
        # a policy that stores little goes wrong, as the second arm does
        if self.t == fake.differ_at and (self.index == 1 or getattr(self.policy, "S", 100) < 35):
            word = "<b>blue</b>"
        text = word if self.t == 0 else " " + word
        self.texts.append(text)
        token = hash(word) % 30000
        self.tokens.append(token)
        self.times.append(ms)
        n = start.n_image
        counts = [self._counts(layer) for layer in range(start.layers)]
        entry = start.token_bytes // start.layers
        update = self.policy.is_update(self.t) if self.t else False
        costs = [layer_cost(self.policy, self.shape, layer, self.t) for layer in range(start.layers)]
        stored, read = (int(sum(getattr(cost, name) for cost in costs)) for name in ("stored", "read"))
        rows = start.batch
        self.peak = max(self.peak, rows * (stored + (n - counts[0][0] if self.t == 0 else 0)) * entry)
        if self.t == 0:
            yield trace.Prefill(
                self.index,
                ms,
                token,
                text,
                tuple(int(rows * cost.stored) for cost in costs),
                rows * stored * entry,
                rows * (stored + n - counts[0][0]) * entry,
            )
            yield from self._first_sets(counts)
            if self._forgets:  # every layer loses other words: those of its own number, modulo 3
                kept = ([token for token in range(self.n_text) if token % 3 != layer % 3] for layer in range(start.layers))
                yield trace.TextSets(self.index, 0, tuple(trace.pack_bits(tokens, self.n_text) for tokens in kept))
        else:
            self.bytes.append((rows * stored * entry, rows * read * entry))
            yield trace.Step(
                self.index,
                self.t,
                token,
                text,
                ms,
                self.clock,
                rows * stored,
                rows * read,
                rows * stored * entry,
                rows * read * entry,
                update,
            )
            if self._forgets and self.t % 4 == 0:  # the word before the last one, in every other layer
                gone = tuple((self.n_text + self.t - 2,) if layer % 2 else () for layer in range(start.layers))
                yield trace.TextSets(self.index, self.t, None, gone)
            if update and self.kept is not None and counts[-1][1] < counts[-1][0]:
                yield trace.Sets(self.index, self.t, None, self._top(self._covered(self._scores(), core=True), counts[-1][1], self.kept))
            elif not self.policy.pins_image and (seen := self.policy.observe(0, self.shape)) and seen.decode:
                yield trace.Sets(self.index, self.t, self._top(self._scores(), counts[0][0]), None)
        if self.t % 4 == 0:
            used = 173_000_000 if fake.device_bytes else None
            note = "" if fake.device_bytes else "n/a (no NVIDIA GPU)"
            yield trace.Reading(self.index, self.clock, used, None, 900_000_000 + self.t * 100_000, None, note)
        if self.t + 1 >= start.limit or self.t + 1 >= 3 * len(words):
            yield self.end("length" if self.t + 1 >= start.limit else "eos")

    def _first_sets(self, counts: list[tuple[int, int]]) -> Iterator[trace.Event]:
        n = self.start.n_image
        scores = self._scores()
        if self.policy.name in ("Full", "StreamingLLM"):
            return
        pruned = None
        left = pruned_from(self.policy, self.shape)
        if left is not None:
            order = np.argsort(-scores[left - 1])[self.policy.present(left, self.shape) :]
            pruned = trace.pack_bits(order.tolist(), n)
            scores[left:, order] = -1
        held = self._covered(scores, core=False)
        stored = tuple(self._top(held[layer : layer + 1], image)[0] for layer, (image, _) in enumerate(counts))
        self.kept = np.stack([trace.unpack_bits(bits, n) for bits in stored])
        core = None
        if counts[-1][1] < counts[-1][0]:
            core = self._top(self._covered(scores, core=True), counts[-1][1], self.kept)
        yield trace.Sets(self.index, 0, stored, core, pruned)

    def agreement(self, full: _Arm | None) -> trace.Agreement:
        """The arm that answers otherwise would say another word there, too; all others agree."""
        texts = tuple((full or self).texts)
        differs = [self is not full and self.index == 1 and t == self.fake.differ_at for t in range(len(texts))]
        kl = tuple(0.0 if self is full else 1.5 if other else 0.01 for other in differs)
        return trace.Agreement(
            arm=self.index,
            reference=None if full is None else full.index,
            tokens=tuple(range(len(texts))),
            texts=texts,
            top=tuple(29_999 if other else None for other in differs),
            top_texts=tuple(" <b>blue</b>" if other else None for other in differs),
            kl=kl,
            nll=tuple(0.2 + one for one in kl),
            full_nll=(0.2,) * len(texts),
        )

    def attention(self, t: int) -> trace.Scores:
        scores = self._scores()
        generated = min(0.3, 0.02 * t)
        image = scores / scores.sum(axis=1, keepdims=True)
        return trace.Scores.pack(self.index, t, image, [(0.4 - generated, 0.3, 0.3, generated, 0.0) for _ in scores])

    def _counts(self, layer: int) -> tuple[int, int]:
        """Image tokens that a layer stores and reads; where images are not pinned, their share of what it stores."""
        budget, n = self.policy.store(layer, self.shape), self.start.n_image
        image = budget.image if self.policy.pins_image else budget.start(self.shape.length) * n // self.shape.length
        core = self.policy.select(layer, self.shape)
        return image, image if core is None else core

    def end(self, reason: str) -> trace.End:
        self.finished = True
        decode = self.bytes or [(0, 0)]
        return trace.End(
            self.index,
            reason,
            "".join(self.texts),
            tuple(self.tokens),
            self.times[0] if self.times else 0.0,
            float(np.median(self.times[1:])) if self.times[1:] else None,
            self.clock,
            sum(b for b, _ in decode) / len(decode),
            sum(r for _, r in decode) / len(decode),
            self.peak,
        )
