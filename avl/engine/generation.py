"""What ``model.generation_config`` asks of an answer: obeyed with transformers' own code, or refused by name.

The law: a run gives the tokens of ``model.generate(max_new_tokens=..., do_sample=temperature > 0, temperature=..., top_p=...)``. Every
field of ``GenerationConfig`` is in one of the four tables below; a test fails for a field that is in none.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, StopStringCriteria

from avl._compat import logits_processors, prepared_generation_config
from avl.engine.request import GenerationRequest
from avl.models.families import causal_model
from avl.policies.base import shown

SAMPLED = frozenset({"epsilon_cutoff", "eta_cutoff", "min_p", "top_h", "top_k", "typical_p"})
"""Obeyed when sampling, as generate does."""

SILENT = {
    "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "min_length": 0,
    "min_new_tokens": 0, "no_repeat_ngram_size": 0, "repetition_penalty": 1, "top_k": 50, "typical_p": 1,
}  # fmt: skip
"""Values that change nothing, or that transformers takes where a config is silent."""

OBEYED = frozenset({
    "bad_words_ids", "begin_suppress_tokens", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "min_length", "min_new_tokens",
    "no_repeat_ngram_size", "remove_invalid_values", "renormalize_logits", "repetition_penalty", "sequence_bias",
    "suppress_tokens", "watermarking_config",
    "eos_token_id", "max_time", "stop_strings",
}) | SAMPLED  # fmt: skip
ARGUMENTS = frozenset({"do_sample", "max_length", "max_new_tokens", "temperature", "top_p"})
"""Always set by the caller's own ``temperature``, ``top_p`` and ``max_new_tokens``."""

NO_EFFECT = frozenset({
    # of generate's output, cache and compilation: never of the tokens
    "cache_config", "compile_config", "continuous_batching_config", "disable_compile", "low_memory", "max_cache_len", "output_attentions",
    "output_hidden_states", "output_logits", "output_scores", "prefill_chunk_size", "return_dict_in_generate", "transformers_version",
    # of rows that have ended, of prompts that are empty, of encoder-decoders
    "bos_token_id", "decoder_start_token_id", "pad_token_id",
    # of beams and assistants, which are refused
    "assistant_confidence_threshold", "assistant_ensemble_weight", "assistant_lookbehind", "diversity_penalty", "early_stopping",
    "length_penalty", "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "speculation_type",
    "target_lookbehind",
})  # fmt: skip
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "assistant_early_exit": ((None,), "assisted generation"),
    "cache_implementation": ((None, "dynamic", "hybrid"), "another KV cache than the policy's"),
    "constraints": ((None,), "constrained beam search"),
    "dola_layers": ((None,), "DoLa decoding"),
    "force_words_ids": ((None,), "constrained beam search"),
    "guidance_scale": ((None, 1), "classifier-free guidance"),
    "is_assistant": ((None, False), "an assistant's decoding"),
    "num_beam_groups": ((None, 1), "group beam search"),
    "num_beams": ((None, 1), "beam search"),
    "num_return_sequences": ((None, 1), "several answers to one prompt"),
    "penalty_alpha": ((None, 0), "contrastive search"),
    "prompt_lookup_num_tokens": ((None,), "assisted generation"),
    "token_healing": ((None, False), "another prompt than the one given"),
    "use_cache": ((None, True), "decoding without a KV cache"),
    "use_mtp": ((None, False), "assisted generation"),
}
"""Field -> (values that ask for nothing, what any other value asks for)."""


@dataclass(frozen=True)
class Settings:
    """The generation settings of one request.

    Attributes:
        model: the part of the model whose ``generate`` runs in the end, and whose methods make the logits processors.
        place: where its generation config is, from the whole model on.
        config: the config that ``model.generate`` would use.
        stated: settings of the model's own config that change the answer, as ``name=value``.
        eos: token ids that end a row.
        max_time: seconds of compute after which a run ends, None for no limit.
        stop_strings: ends a row whose newest token completes one of the strings, None if there are none.
    """

    model: Any
    place: str
    config: Any
    stated: tuple[str, ...]
    eos: frozenset[int]
    max_time: float | None
    stop_strings: StopStringCriteria | None

    @classmethod
    def of(cls, model: Any, tokenizer: Any, request: GenerationRequest) -> Settings:
        """Return the settings of a request.

        Raises:
            ValueError: the model's generation config asks for what the engine does not do, or holds an invalid value.
        """
        # generate of some models calls that of a language model inside, which obeys its own config
        causal = causal_model(model)
        path = next(name for name, module in model.named_modules() if module is causal)
        model, place = causal, ".".join(["model", *([path] if path else []), "generation_config"])
        own = model.generation_config
        for name in sorted(vars(GenerationConfig())):
            _refuse(name, getattr(own, name, None), place)
        sampling = {"do_sample": True, "temperature": float(request.temperature), "top_p": float(request.top_p)}
        try:
            config = prepared_generation_config(
                model, max_new_tokens=request.max_new_tokens, **(sampling if request.temperature > 0 else {"do_sample": False})
            )
            eos = torch.tensor([] if own.eos_token_id is None else own.eos_token_id, dtype=torch.long).flatten().tolist()
            max_time = None if own.max_time is None else float(own.max_time)
            strings = None if own.stop_strings is None else StopStringCriteria(tokenizer, own.stop_strings)
        except Exception as error:
            raise _invalid(error, place) from None
        return cls(model, place, config, _stated(own, request.temperature > 0), frozenset(eos), max_time, strings)

    def processors(self, ids: torch.Tensor, mask: torch.Tensor | None) -> Any:
        """Return new logits processors for a prompt ``ids [B, L]``; they may hold state, so every run has its own.

        Raises:
            ValueError: a setting has an invalid value.
        """
        try:
            return logits_processors(self.model, copy.deepcopy(self.config), ids, mask)
        except Exception as error:
            raise _invalid(error, self.place) from None


def _refuse(name: str, value: Any, place: str) -> None:
    if name in OBEYED or name in ARGUMENTS or name in NO_EFFECT or name.startswith("_"):
        return
    off, what = REFUSED.get(name, ((None,), "something that this version does not know"))
    # a bool is no number here: True is not the 1 of num_beams
    if not any(value is one or (type(value) is not bool and value == one) for one in off):
        raise ValueError(
            f"{place}.{name}={shown(value)} asks for {what}, which avl.stream and avl.race do not do: set {place}.{name} = None"
        )


def _stated(own: Any, sampled: bool) -> tuple[str, ...]:
    """Return the settings that the model's config states and that are not transformers' defaults, as ``name=value``."""
    found = []
    for name in sorted(OBEYED - {"eos_token_id"} - (set() if sampled else SAMPLED)):
        value = getattr(own, name, None)
        if value is not None and value is not False and value != SILENT.get(name):
            found.append(f"{name}={shown(value)}")
    return tuple(found)


def _invalid(error: Exception, place: str) -> ValueError:
    text = str(error).strip().splitlines()
    reason = (text[0].rstrip(".:")[:200] if text else "") or type(error).__name__
    return ValueError(f"{place} holds a setting that transformers refuses ({reason}): correct it or set it to None")
