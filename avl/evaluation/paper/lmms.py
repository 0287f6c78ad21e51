"""A model class for lmms-eval's own command: ``lmms-eval --model avl --model_args "pretrained=tiny,policy=avl:S=45;C=30" --tasks …``.

lmms-eval finds it by the entry point ``lmms_eval.models`` of pyproject.toml, which names :func:`manifest`. The only file that cannot be
imported without lmms-eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

from avl.attention.attachment import attach
from avl.evaluation.paper.answering import MAX_NEW_TOKENS, Settings, prompt_of, replies
from avl.evaluation.paper.processes import Processes
from avl.models.loading import load
from avl.policies import parse_policy


class Lmms(lmms):
    """A model under a policy, as lmms-eval asks it; answers are greedy.

    Args:
        pretrained: as ``avl.load``.
        policy: as ``avl eval`` takes policies, with ``;`` between parameters, because lmms-eval splits its arguments at ``,``.
        batch_size: documents at a time; ``auto`` is not offered.
        device: as ``avl.load``; of several processes each takes a GPU of its own.
        dtype: as ``avl.load``.
        revision: as ``avl.load``.
        max_new_tokens: most tokens of an answer where a task sets none.

    Raises:
        ValueError: the policy is unknown, or the batch is no number.
        OSError: as ``avl.load``.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "tiny",
        policy: str = "full",
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        revision: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        super().__init__()
        self.policy = parse_policy(policy.replace(";", ","))
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size!r} is no number of documents: pass --batch_size 8, for example")
        self.batch_size, self._max_new_tokens = int(batch_size), int(max_new_tokens)
        self._processes = Processes.join()
        self._rank, self._world_size = self._processes.rank, self._processes.world
        place = self._processes.device(device or "auto", None)
        self._model, self._processor = load(pretrained, device=place, dtype=dtype, revision=revision)
        attach(self._model)

    @property
    def device(self) -> Any:
        """The model's device, where lmms-eval puts what several processes exchange."""
        return self._model.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Return an answer to each request, in their order.

        Raises:
            ValueError: a document cannot be asked; says which.
        """
        asked = [(*request.args, place) for place, request in enumerate(requests)]
        groups: dict[Settings, list[tuple[Any, ...]]] = {}
        for one in asked:
            groups.setdefault(Settings.of(one[2], self._max_new_tokens), []).append(one)
        found: dict[int, GenerationResult] = {}
        for settings, several in groups.items():
            for start in range(0, len(several), self.batch_size):
                some = several[start : start + self.batch_size]
                for one, reply in zip(some, self._answered(some, settings), strict=True):
                    found[one[-1]] = GenerationResult(reply.text, TokenCounts(reply.asked, reply.tokens))
        return [found[place] for place in range(len(requests))]

    def _answered(self, some: Sequence[tuple[Any, ...]], settings: Settings) -> list[Any]:
        chats = []
        for _, to_messages, _, number, task, split, _ in some:
            try:
                chat = to_messages(self.task_dict[task][split][number])
                prompt_of(self._model, self._processor, chat)
            except Exception as error:  # decoders and a task's own code raise anything
                raise ValueError(f"{task}, document {number} cannot be asked ({error})") from error
            chats.append(chat)
        return replies(self._model, self._processor, chats, self.policy, settings)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refuse: a policy acts on answers that are written, and not on the likelihood of given ones."""
        raise ValueError("policies answer in words, and this task asks for likelihoods: choose one whose output_type is generate_until")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Refuse: a round would be a prompt of its own."""
        raise ValueError("this task asks in several rounds, which is not offered: choose one whose output_type is generate_until")

    def clean(self) -> None:
        """Keep the model, which lmms-eval would take apart after a run: the caller may go on with it."""


def manifest() -> Any:
    """Return what lmms-eval's registry wants to know."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="avl", chat_class_path=f"{__name__}.{Lmms.__name__}")
