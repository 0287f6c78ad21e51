"""lmms-eval's tasks as tasks that cells ask: ``lmms_task(name, model, processor)``.

Documents, prompts, generation settings and the score of each answer are lmms-eval's own; answers are written under a policy, in batches.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avl.evaluation.cells import Answer
from avl.evaluation.paper import captions
from avl.evaluation.paper.answering import MAX_NEW_TOKENS, Messages, Settings, prompt_of, replies, shape_of
from avl.evaluation.paper.evaluator import VERSION, cause, load_task, require_evaluator
from avl.evaluation.paper.published import BENCHMARKS
from avl.policies import Policy, PromptShape

CIDER = "CIDEr"
"""How the metric of captions ends."""

BATCH = 8
TYPICAL = 16
"""Documents whose prompts say how long a task's prompts are."""


def lmms_task(
    name: str,
    model: Any,
    processor: Any,
    *,
    limit: int | None = None,
    batch: int = BATCH,
    include: Path | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> LmmsTask:
    """Return one of lmms-eval's tasks.

    Args:
        name: as lmms-eval calls it.
        model: an attached model.
        processor: its processor.
        limit: the first so many documents; None for all.
        batch: documents at a time.
        include: a folder with further task files.
        max_new_tokens: most tokens of an answer where the task sets none.

    Raises:
        ValueError: there is no such task, policies cannot answer it, its metric gives no score for each document, or the limit is below 1.
        OSError: lmms-eval is not installed, its data cannot be had, or captions cannot be scored here.
    """
    require_evaluator()
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} leaves no document: ask for at least 1")
    if batch < 1:
        raise ValueError(f"batch={batch} is no batch: ask for at least 1 document at a time")
    return LmmsTask(data(name, include), name, model, processor, limit, batch, max_new_tokens)


def data(name: str, include: Path | None = None) -> Any:
    """Return lmms-eval's task with its data set, which needs no model.

    Raises:
        ValueError: as :func:`lmms_task`.
        OSError: likewise.
    """
    task = load_task(name, include)
    if _headline(name, task).endswith(CIDER):
        captions.require_captions()
    return task


def _headline(name: str, task: Any) -> str:
    metrics = [str(one) for one in task.aggregation()]
    if name in BENCHMARKS:
        return BENCHMARKS[name].metric
    return next((one for one in metrics if one.endswith(CIDER)), metrics[0])


class LmmsTask:
    """A task of lmms-eval; made by :func:`lmms_task`, which describes the arguments.

    Attributes:
        name: as lmms-eval calls it.
        of: documents of the whole data set.
        size: documents that are asked.
        metric: the key of the score: the paper's where it is one of the paper's tasks, else CIDEr where there is one, else the first.
        made: what the answers depend on.
    """

    def __init__(self, task: Any, name: str, model: Any, processor: Any, limit: int | None, batch: int, max_new_tokens: int) -> None:
        self.name, self._task, self._model, self._processor, self._batch = name, task, model, processor, batch
        self._documents, self._told = task.eval_docs, task.eval_docs_no_media
        self.of = len(self._documents)
        if not self.of:
            raise ValueError(f"{name} has no documents")
        self.size = self.of if limit is None else min(limit, self.of)
        given = dict(task.config.generation_kwargs or {})
        try:
            self._settings = Settings.of(given, max_new_tokens)
        except ValueError as error:
            raise ValueError(f"{name} cannot be asked: {error}") from None
        self.metric = _headline(name, task)
        self._references: captions.Tokenized = {}
        self._is_caption = self.metric.endswith(CIDER)
        if not self._is_caption:
            self._score(0, "")  # refuses a metric of whole corpora before anything is asked
        self.made: Mapping[str, Any] = {
            "evaluator": f"lmms-eval {VERSION}",
            "data": task.config.dataset_path,
            "subset": task.config.dataset_name,
            "split": task.config.test_split or task.config.validation_split,
            "revision": _revision(self._documents),
            "documents": _digest(self._told),
            "bytes": sum(split.num_bytes for split in (self._documents.info.splits or {}).values()),
            "prompt": _plain(task.lmms_eval_specific_kwargs),
            "max_new_tokens": self._settings.max_new_tokens,
            "until": list(self._settings.until),
        }  # not the batch: answers and counts are a row's own, and one that ran out of memory goes on with a smaller one

    def ask(self, policy: Policy, numbers: Sequence[int]) -> list[Answer]:
        """Return the answers to these documents under a policy.

        Raises:
            ValueError: a document cannot be read or asked; says which and why. There is never an empty answer in its place.
        """
        found = []
        for start in range(0, len(numbers), self._batch):
            some = numbers[start : start + self._batch]
            chats = [self.messages(number) for number in some]
            try:
                told = replies(self._model, self._processor, chats, policy, self._settings)
            except ValueError as error:
                which = f"document {some[0]}" if len(some) == 1 else f"documents {', '.join(map(str, some))}"
                raise ValueError(f"{self.name}, {which}: {error}") from error
            found += [Answer(n, one.text, one.stored, one.read, one.full, one.seconds) for n, one in zip(some, told, strict=True)]
        return found

    def messages(self, number: int) -> Messages:
        """Return what is asked about a document, as lmms-eval's chat messages.

        Raises:
            ValueError: the document cannot be read, or not asked of this model.
        """
        try:
            chat: Messages = self._task.doc_to_messages(self._documents[number])
            prompt_of(self._model, self._processor, chat)
        except Exception as error:  # decoders and a task's own code raise anything
            raise ValueError(
                f"{self.name}, document {number} cannot be asked ({_line(error)}): mend its data, or ask fewer with a limit"
            ) from error
        return chat

    def prompt(self, number: int = 0) -> str:
        """Return a document's prompt as the model reads it, for people to compare."""
        return prompt_of(self._model, self._processor, self.messages(number))

    def shape(self) -> PromptShape:
        """Return the median sizes of the first documents' prompts, whatever the limit: a policy that is fitted to them stays the same."""
        shapes = [
            shape_of(self._model, self._processor, self.messages(n), self._settings.max_new_tokens) for n in range(min(TYPICAL, self.of))
        ]
        images, texts = (sorted(getattr(one, name) for one in shapes)[len(shapes) // 2] for name in ("n_image", "n_text"))
        return PromptShape(images, texts, shapes[0].max_new_tokens, shapes[0].n_layers)

    def scores(self, texts: Mapping[int, str]) -> dict[int, float]:
        """Return the score of each answer: that of the task's own code, or CIDEr among the documents that are given.

        Raises:
            ValueError: the task's own code fails with a document.
            OSError: captions cannot be scored here.
        """
        if not self._is_caption:
            return {number: self._score(number, text) for number, text in texts.items()}
        results = {number: self._result(number, text) for number, text in texts.items()}
        if any(number not in self._references for number in texts):
            told = {number: [one["answer"]] if isinstance(one["answer"], str) else list(one["answer"]) for number, one in results.items()}
            self._references |= captions.tokenized(told)
        return captions.cider({number: str(one["pred"]) for number, one in results.items()}, self._references)

    def _result(self, number: int, text: str) -> Any:
        """Return what the task's own code makes of an answer, after its filters."""
        from lmms_eval.api.instance import Instance

        try:
            instance = Instance("generate_until", (), 0, {"task": self.name, "doc_id": number, "repeats": 1}, [text])
            (filters,) = self._task._filters
            filters.apply([instance], self._told)
            return self._task.process_results(self._told[number], [instance.filtered_resps[filters.name]])[self.metric]
        except Exception as error:
            raise ValueError(f"{self.name}, document {number} cannot be scored by {self.metric} ({_line(cause(error))})") from error

    def _score(self, number: int, text: str) -> float:
        found = self._result(number, text)
        if isinstance(found, Mapping):
            found = found.get("score")
        if isinstance(found, bool | int | float):
            return float(found)
        raise ValueError(f"{self.name} cannot be used: its metric {self.metric} gives no score for each document, only one for all")


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _plain(value: Any) -> Any:
    """Return prompts' settings as a file keeps them; those of other models, beside the ones that count, change nothing."""
    return {key: one for key, one in value.items() if not isinstance(one, Mapping)} if isinstance(value, Mapping) else None


def _revision(documents: Any) -> str | None:
    """Return the commit of a data set of the Hub, None where it comes from files."""
    folders = {Path(file["filename"]).parent.name for file in documents.cache_files}  # datasets names them by the commit
    return ", ".join(sorted(one for one in folders if re.fullmatch("[0-9a-f]{40}", one))) or None


def _digest(told: Any) -> str:
    """Return a hash of all documents without their pictures: another revision of the data is another task."""
    digest = hashlib.sha256()
    for document in told:
        digest.update(json.dumps(document, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
