"""A conversation: further questions about the same pictures, and about new ones, asked of what each policy has kept.

Every policy has a line of its own: its answers are its history, and its cache goes on from turn to turn (avl/cache/turns.py). A turn is a
run like any other, with the events of avl/trace. Beside the kept lines a turn may *re-read*: the whole conversation, pictures included, is
then a fresh prompt under the same policy, which shows what eviction at the first question has cost.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Self

import torch

from avl.cache.cache import AdaptiveCache
from avl.cache.layout import Row, check_later_pictures, check_room, find_rows, ids_and_mask
from avl.engine.decoder import Stopped
from avl.engine.devices import made_on
from avl.engine.generation import Settings
from avl.engine.lanes import Job, Lane, Later
from avl.engine.lines import Fed, Line, Plan, Said, Turn, whole_inputs
from avl.engine.replay import replay
from avl.engine.request import GenerationRequest, check_stop
from avl.engine.runner import Runner
from avl.engine.scheduler import events_of
from avl.engine.start import grids_of, make_arm, make_start, ready, texts_of
from avl.engine.timing import Clock
from avl.kernels import resolve_impl
from avl.models.dialog import following_ids, following_text
from avl.models.families import family_of
from avl.models.images import open_image
from avl.models.inputs import LaterPictures, prepare
from avl.policies import Policy, labels
from avl.policies.base import shown
from avl.trace import End, Error, Event, Prefill, Start, Warning


class Conversation:
    """Questions about pictures, one after another, under one policy or several.

    A first question runs exactly as :func:`avl.stream` or :func:`avl.race` run it. Of a later one the new tokens are fed in one pass: the
    last answer's unfed tokens, and what the model's chat template writes between an answer and the next. They read all image tokens that
    are stored, the text window, and causally one another. The last one's scores choose a new core among what is stored; evicted tokens stay
    evicted. Text accumulates attention over the pass, and the window is then cut as after a prompt, to ``T`` % of all text of the
    conversation plus this turn's ``max_new_tokens``: it grows with the conversation. H2O and StreamingLLM do the same with their shares of
    the whole conversation; SnapKV, PyramidKV and FastV keep all new text. Update steps count from the beginning of each turn.

    A later question may bring pictures. They are evicted as those of a first prompt, among themselves, and what was stored before stays:
    ``S`` % of the new image tokens are stored, ``P`` % of them stay in the hidden states, ``spread`` is a lattice of its own; the core is
    ``C`` % of all image tokens of the conversation. FastV prunes them alike. SnapKV and PyramidKV take what such a turn feeds for a prompt
    of its own. For H2O and StreamingLLM they are tokens like others.

    A generator that is closed, or a ``stop`` that is set, interrupts an answer; the next question follows what was said until then. A run
    that fails breaks the conversation and frees its memory: :meth:`resumed` goes on from :attr:`history`.

    Args:
        model: from ``avl.load``.
        processor: from ``avl.load``.
        images: an image or a list of images (PIL, path, bytes, array), which the first question and all later ones are about.
        policies: what to store and read; one policy, or several, each with its own answers and cache.
        options: the other fields of :class:`GenerationRequest`, for every turn: max_new_tokens, mode, temperature, top_p, seed, …

    Raises:
        ValueError: bad input; in one sentence.
        TypeError: the model's class is not supported, or the processor is none.
    """

    def __init__(self, model: Any, processor: Any, images: Any, policies: Policy | Iterable[Policy], **options: Any) -> None:
        self._asked = GenerationRequest(images, "?", policies, **options)  # type: ignore[arg-type]
        if self._asked.batch != 1:
            raise ValueError(f"batch={self._asked.batch} is not possible in a conversation, whose rows end apart: use 1")
        self._facts = ready(model, processor)
        self._model, self._processor = model, processor
        self._single = isinstance(policies, Policy)
        self._lines = [Line(policy) for policy in self._asked.policies]
        self._questions: list[str] = []
        self._said: list[Said] = []
        self._shown: list[tuple[tuple[Any, ...], dict[str, Any], int]] = []  # of every turn: pictures, their inputs, their tokens
        self._inputs: dict[str, Any] = {}
        self._row: Row | None = None
        self._over: str | None = None
        self._run: Generator[Event, None, None] | None = None

    @classmethod
    def resumed(
        cls, model: Any, processor: Any, images: Any, policies: Policy | Iterable[Policy], history: Iterable[Said], **options: Any
    ) -> Self:
        """Return a conversation that goes on after ``history``, from :attr:`history` of one with the same first pictures and policies.

        Nothing runs before the next question: it then builds each cache again, token by token, and a Warning event says how long that took.

        Raises:
            ValueError: as for a new conversation, or the history is not one of these policies.
        """
        chat = cls(model, processor, images, policies, **options)
        for said in history:
            if len(said.answers) != len(chat._lines):
                raise ValueError(f"the history has answers of {len(said.answers)} policies, this conversation has {len(chat._lines)}")
            plan = chat._plan(said.question, {"max_new_tokens": said.max_new_tokens}, said.images)
            for line, fed, tokens in zip(chat._lines, plan.fed, said.answers, strict=True):
                line.take(fed, plan.request.max_new_tokens, tokens, plan.settings, processor.tokenizer)
            chat._note(plan, tuple(map(tuple, said.answers)))
        return chat

    @property
    def history(self) -> tuple[Said, ...]:
        """The turns so far, to resume from: questions, the pictures of later ones, and the tokens of every answer."""
        return tuple(self._said)

    @property
    def answers(self) -> tuple[tuple[str, ...], ...]:
        """The answers so far, of every policy."""
        return tuple(tuple(line.answers) for line in self._lines)

    @property
    def caches(self) -> tuple[AdaptiveCache | None, ...]:
        """The cache of every policy; None before it has run, and where it has to be built again."""
        return tuple(line.cache for line in self._lines)

    @property
    def stored_bytes(self) -> int:
        """Bytes of keys and values that all policies hold between two turns."""
        return sum(cache.stored_bytes for cache in self.caches if cache is not None)

    def ask(self, question: str, stop: threading.Event | None = None, **options: Any) -> Turn | tuple[Turn, ...]:
        """Ask the next question and return the answer; a tuple of one for each policy where the conversation has a list of them.

        Args:
            question: what to ask.
            stop: when set, the run ends before its next step.
            options: as of :meth:`stream`.

        Raises:
            ValueError: as :meth:`stream`.
            RuntimeError: the run failed: too little memory, or logits that are no numbers.
        """
        first: dict[int, float] = {}
        ends: dict[int, End] = {}
        start: Start | None = None
        for event in self.stream(question, stop, **options):
            if isinstance(event, Start):
                start = event
            elif isinstance(event, Prefill):
                first[event.arm] = event.ms
            elif isinstance(event, End):
                ends[event.arm] = event
            elif isinstance(event, Error):
                raise RuntimeError(event.message)
        assert start is not None
        fed = [arm.new_tokens or start.n_image + start.n_text for arm in start.arms]
        found = tuple(
            Turn(end.text, end.tokens, end.reason, first.get(arm, 0.0), end.clock_ms, fed[arm], end.stored_bytes, end.peak_bytes)
            for arm, end in sorted(ends.items())
        )
        return found[0] if self._single and len(found) == 1 else found

    def stream(
        self,
        question: str,
        stop: threading.Event | None = None,
        *,
        images: Any = None,
        reread: bool | Sequence[int] = False,
        **options: Any,
    ) -> Iterator[Event]:
        """Ask the next question and yield the events of its run; checks everything immediately.

        Arms are the policies in order, then those that re-read. An answer that still runs is interrupted.

        Args:
            question: a plain question; the first may be a whole prompt, which later ones continue as ``avl.Prompt``, with a placeholder for
                each of their own pictures.
            stop: when set, the run ends before its next step.
            images: pictures that a later question brings (an image or a list of them), which precede it.
            reread: which policies, by number, also answer from the whole conversation as a fresh prompt; True for all. Not in a first turn.
            options: fields of :class:`GenerationRequest` that differ in this turn.

        Raises:
            ValueError: bad input, the model's context is exceeded, the model takes no pictures in later turns, or the conversation is over;
                raised before anything runs.
        """
        check_stop(stop)
        self._interrupt()
        plan = self._plan(question, options, images, reread)
        jobs, start = self._make(plan)
        self._run = self._events(plan, jobs, start, stop or threading.Event())
        return made_on(self._model.device, self._run)

    def close(self) -> None:
        """End the conversation and free its memory; :attr:`history` stays.

        Raises:
            ValueError: an answer runs in another thread.
        """
        self._interrupt()
        self._break("the conversation was closed: begin another one, or go on with Conversation.resumed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _interrupt(self) -> None:
        """Interrupt the answer that still runs, if any."""
        try:
            if self._run is not None:
                self._run.close()
        except ValueError:  # generator already executing
            raise ValueError("an answer of this conversation runs in another thread: set its stop, and wait for its end") from None

    def _plan(self, question: str, options: dict[str, Any], images: Any = None, reread: bool | Sequence[int] = False) -> Plan:
        """Check a turn and return what it runs; changes nothing."""
        if self._over is not None:
            raise ValueError(self._over)
        fixed = [name for name in ("policies", "batch", "question") if name in options]
        if fixed:
            raise ValueError(f"{fixed[0]} cannot differ between the turns of a conversation: begin another one")
        request = replace(self._asked, question=question, **options)
        settings = Settings.of(self._model, self._processor.tokenizer, request)
        again, family = self._again(reread), family_of(self._model.config)
        opened = () if images is None else tuple(open_image(one) for one in (images if isinstance(images, list | tuple) else [images]))
        pictures: dict[str, torch.Tensor] = {}
        if not self._questions:
            if opened:
                raise ValueError("a first question is about the pictures that the conversation was made with: pass them to Conversation")
            if again:
                raise ValueError("a first question is read for the first time: reread begins with the second")
            inputs, text = prepare(self._model, self._processor, request.images, request.question)
            (row,) = find_rows(*ids_and_mask(inputs), self._facts.image_token_id)
            fed = [Fed(tuple(inputs["input_ids"][0, row.pad :].tolist()), row.image)] * len(self._lines)
        else:
            for name, alone in (("repeats", 1), ("agreement", False)):
                if getattr(request, name) != alone:
                    raise ValueError(f"{name}={getattr(request, name)} is possible in a first turn only: later ones continue what it left")
            assert self._row is not None
            inputs, row, text, fed = self._inputs, self._row, "", []
            asked = [*self._questions, request.question]
            counts = [*(len(said.images) for said in self._said[1:]), len(opened)]
            seen = LaterPictures(self._model, self._processor, opened) if opened else None
            encode = None if seen is None else seen.ids
            for line in self._lines:
                text = following_text(self._model.config, self._processor, asked, line.answers, len(self._asked.images), counts)
                ids = following_ids(self._processor.tokenizer, text, line.end, settings.eos, encode)
                pictures = {} if seen is None else seen.tensors
                fed.append(line.follow(ids, self._facts.image_token_id, pictures, family.picture_axis))
        limit, layers = request.max_new_tokens, self._facts.layers
        laid = [line.layout(row, one, limit, layers) for line, one in zip(self._lines, fed, strict=True)]
        rows, shapes = tuple(row for row, _ in laid), tuple(shape for _, shape in laid)
        for one in fed if self._questions else []:
            check_later_pictures(family, [len(one.new)], [one.image])
        check_room(self._facts, max(one.length for one in rows) + limit, limit)
        return Plan(request, settings, inputs, text, row, fed, opened, pictures, again, rows, shapes)

    def _again(self, reread: Any) -> tuple[int, ...]:
        """Return the numbers of the policies that also re-read."""
        every = range(len(self._lines))
        if isinstance(reread, bool):
            return tuple(every) if reread else ()
        if not isinstance(reread, list | tuple | range) or any(isinstance(one, bool) or one not in every for one in reread):
            raise ValueError(f"reread={shown(reread)} names no policies: use their numbers, 0 to {every[-1]}, or True for all")
        return tuple(reread)

    def _make(self, plan: Plan) -> tuple[list[Job], Start]:
        """Return the job of every arm and the first event of the run."""
        lines, model, processor = self._lines, self._model, self._processor
        later, kept, family = bool(self._questions), list(range(len(lines))), family_of(model.config)
        new_tokens = plan.rows[0].n_image - sum(count for *_, count in self._shown)
        shown = [*self._shown, (plan.images, plan.pictures, new_tokens) if later else (plan.request.images, plan.inputs, new_tokens)]
        policies = tuple(lines[number].policy for number in [*kept, *plan.reread])
        request = replace(plan.request, policies=policies, images=tuple(one for images, *_ in shown for one in images))
        names = labels([line.policy for line in lines])
        implementation = resolve_impl(model.device, dtype=model.dtype, head_size=self._facts.head_dim)
        jobs, arms = [], []
        for arm, number in enumerate([*kept, *plan.reread]):
            line, row, shape, fresh = lines[number], plan.rows[number], plan.shapes[number], arm >= len(kept)
            fed, inputs = plan.fed[number], plan.inputs
            ids = [*line.ids, *fed.new[len(line.unfed) :]] if later else list(fed.new)
            if later:
                inputs = whole_inputs(inputs, ids, row, family.token_types)
            if fresh:
                inputs |= line.all_pictures(plan.inputs, fed, family.picture_axis)
            jobs.append(Job(model, processor, inputs, request, plan.settings))
            more: dict[str, Any] = {}
            if later:
                more = {
                    "answers": tuple(line.answers), "reread": fresh, "new_tokens": row.length if fresh else len(fed.new),
                    "n_text": row.n_text, "spans": row.spans, "text": texts_of(processor, row, ids),
                }  # fmt: skip
            if fresh:
                shape = replace(shape, past=None)
                if sum(token == self._facts.image_token_id for token in ids) != row.n_image:
                    raise ValueError("an earlier answer holds the placeholder of a picture, so the conversation cannot be read again")
            if fresh or not later:
                jobs[-1].make_cache(line.policy)  # allocates nothing, but raises if anything does not fit
            arms.append(make_arm(line.policy, names[number] + (" re-read" if fresh else ""), implementation, shape, **more))
        jobs[0].make_chooser()
        ids = jobs[0].inputs["input_ids"][0, plan.row.pad :].tolist()
        start = make_start(
            model, processor, request, plan.inputs, plan.text, plan.rows[0], ids, tuple(arms),
            single=self._single and len(arms) == 1, questions=tuple(self._questions), grids=grids_of(model, processor, shown),
        )  # fmt: skip
        return jobs, start

    def _events(self, plan: Plan, jobs: list[Job], start: Start, stop: threading.Event) -> Generator[Event, None, None]:
        done: dict[int, tuple[AdaptiveCache, list[int]]] = {}
        failure, running = None, len(start.arms)
        try:
            for event in events_of(jobs[0], start, stop, lambda: self._lanes(plan, jobs, stop, done)):
                if isinstance(event, Error):
                    failure = event.message
                running -= isinstance(event, End)
                yield event
        except GeneratorExit:
            raise
        except BaseException as error:
            failure = str(error).strip().partition("\n")[0] or type(error).__name__
            raise
        finally:
            self._run = None
            # what fails after the answers, such as recording their attention, has not touched the caches
            self._settle(plan, done, failure if running else None)

    def _lanes(
        self, plan: Plan, jobs: list[Job], stop: threading.Event, done: dict[int, tuple[AdaptiveCache, list[int]]]
    ) -> Generator[Event, None, list[Lane]]:
        """Build caches again where they are missing, extend all, and return what runs; nothing where ``stop`` was set meanwhile."""
        lanes: list[Lane] = []

        def keep(runner: Runner) -> None:
            done[runner.number] = runner.cache, [int(tokens[0]) for tokens in runner.fed]

        for number, line in enumerate(self._lines):
            later = None
            if self._questions:
                passed = tuple(line.passed)

                def again(stop: threading.Event | None, record: bool = True, line: Line = line, passed: Any = passed) -> AdaptiveCache:
                    return replay(self._model, self._inputs, line.policy, passed, stop, record)

                if line.cache is None:
                    clock = Clock(self._model.device)
                    clock.start()
                    try:
                        line.cache = again(stop, record=False)
                    except Stopped:
                        for arm in range(len(jobs)):
                            yield End(arm, "stopped", "", (), 0.0, None, 0.0, 0.0, 0.0, 0)
                        return []
                    yield Warning(
                        f"the cache was built again from what was said, which took {clock.stop():.0f} ms and is in no time of this run",
                        number,
                    )
                fed = plan.fed[number]
                line.cache.extend([len(fed.new)], plan.request.max_new_tokens, [line.said], [fed.image])
                later = Later(line.cache, fed.new, line.said, fed.image, fed.pictures, again)
            lanes.append(Lane(number, line.policy, jobs[number], later, keep))
        for place, number in enumerate(plan.reread, len(lanes)):
            # kept too, and then forgotten, so that both ways report their steps alike
            lanes.append(Lane(place, self._lines[number].policy, jobs[place], None, lambda runner: None))
        return lanes

    def _settle(self, plan: Plan, done: dict[int, tuple[AdaptiveCache, list[int]]], failure: str | None) -> None:
        """Take in what a run has left, complete or interrupted."""
        whole = all(not cache.in_pass and (not tokens or cache.t == len(tokens) - 1) for cache, tokens in done.values())
        if failure is not None or not whole:
            self._break(
                f"this conversation broke off ({failure or 'a pass was interrupted'}): begin another one, or go on with "
                "Conversation.resumed and its history"
            )
            return
        if not any(tokens for _, tokens in done.values()):
            return  # nothing was said: the question was not asked
        for number, line in enumerate(self._lines):
            cache, tokens = done.get(number, (line.cache, []))
            line.cache = cache if cache is None or cache.tables or cache.turn is not None else None
            line.take(plan.fed[number], plan.request.max_new_tokens, tokens, plan.settings, self._processor.tokenizer)
        self._note(plan, tuple(tuple(done[number][1]) if number in done else () for number in range(len(self._lines))))

    def _note(self, plan: Plan, answers: tuple[tuple[int, ...], ...]) -> None:
        self._inputs, self._row = plan.inputs, plan.row
        images, inputs = (plan.images, plan.pictures) if self._questions else (plan.request.images, plan.inputs)
        self._shown.append((images, inputs, plan.rows[0].n_image - sum(count for *_, count in self._shown)))
        self._questions.append(plan.request.question)
        self._said.append(Said(plan.request.question, plan.request.max_new_tokens, answers, plan.images))

    def _break(self, message: str) -> None:
        self._over = self._over or message
        self._inputs, self._shown = {}, []
        for line in self._lines:
            line.cache, line.pictures = None, {}
            line.passed.clear()
