"""Predictions for other machines: ``/what_if`` for programs, and what the page's panel asks.

No ``from __future__ import annotations`` here: Gradio reads the types of the endpoint from its signature as objects.
"""

from collections.abc import Callable
from typing import Any

from avl.bench.hardware import GPUS, gpu_called
from avl.bench.what_if import MODELS, Model, committed, known, machine_called
from avl.bench.what_if import what_if as predict
from avl.policies import Policy
from avl.ui import settings as controls
from avl.ui.errors import sentence
from avl.ui.settings import About

LOADED = "loaded"
"""Name of the model that the page runs."""


def choices(about: About) -> dict[str, Any]:
    """Return what can be chosen: ``models`` ({name, label, n_image}) and ``machines`` ({name, label, source}), and what to start with:
    ``model``, the loaded one, and ``machine``, this one where it is known.
    """
    loaded = [{"name": LOADED, "label": f"{about.name} (loaded)", "n_image": about.sizes.n_image}] if about.sizes else []
    models = [{"name": one.name, "label": one.label, "n_image": one.n_image} for one in map(known, MODELS) if one.name != "tiny"]
    measured = [one.machine for one in committed()]
    here = gpu_called(about.machine) or next((one.machine for one in committed() if about.machine.startswith(one.hardware)), GPUS["h100"])
    return {
        "models": [*loaded, *models],
        "machines": [{"name": one.name, "label": one.label, "source": one.source} for one in (*GPUS.values(), *measured)],
        "model": LOADED if loaded else MODELS[0],
        "machine": here.name,
    }


def what_if_functions(about: About) -> list[Callable[[Any], Any]]:
    """Return the functions that the panel calls: ``what_if`` and ``what_if_choices``."""

    def what_if(wanted: Any) -> dict[str, Any]:
        """Predict; ``{"error": sentence}`` where that is not possible."""
        wanted = wanted if isinstance(wanted, dict) else {}
        try:
            names = ("model", "gpu", "batch", "image_tokens", "text_tokens", "new_tokens", "policy")
            return predicted(about, **{name: wanted[name] for name in names if name in wanted})
        except ValueError as error:
            return {"error": sentence(error)}

    def what_if_choices(_: Any) -> dict[str, Any]:
        """Return models and machines to choose from."""
        return choices(about)

    return [what_if, what_if_choices]


def predicted(
    about: About,
    model: Any = LOADED,
    gpu: Any = "h100",
    batch: Any = (1, 8, 32),
    image_tokens: Any = None,
    text_tokens: Any = 65,
    new_tokens: Any = 128,
    policy: Any = None,
) -> dict[str, Any]:
    """Return the prediction that a visitor or a program asked for; see avl.bench.what_if.what_if.

    Raises:
        ValueError: an argument is no such thing, or out of range; one sentence.
    """
    chosen: Policy | None = None if policy is None else controls.policy(policy)
    return predict(
        _model(model, about),
        machine_called(gpu),
        batch if isinstance(batch, list | tuple) else [batch],
        n_image=image_tokens,
        n_text=text_tokens,
        new_tokens=new_tokens,
        policy=chosen,
    )


def _model(name: Any, about: About) -> Model:
    if name == LOADED and about.sizes is not None:
        return about.sizes
    if not isinstance(name, str):
        raise ValueError(f"The model is {str(name)[:40]!r}: name one of {', '.join(MODELS)}.")
    return known(name)


def endpoint(about: About) -> Callable[..., Any]:
    """Return the function behind ``/what_if``."""

    def what_if(
        model: str = "llava-1.6-7b",
        gpu: str = "h100",
        batch: list = [1, 8, 32],  # noqa: B006  # Gradio shows it as the default; nothing writes to it
        image_tokens: int | None = None,
        text_tokens: int = 65,
        new_tokens: int = 128,
        policy: dict | None = None,
    ) -> dict:
        """Predict time per step, memory and the largest batch of a model on a GPU, from sizes alone. Nothing runs.

        Args:
            model: one of MODELS, or "loaded".
            gpu: one of GPUS.
            batch: rows decoded at once.
            image_tokens: of the prompt; null for those of a usual picture.
            text_tokens: other tokens of the prompt.
            new_tokens: of the answer.
            policy: what is compared with full attention, as in `/compare`; null for the paper's for the model.

        Returns:
            `{"rows", "largest", "over_batch", "over_image", "weights", "measured", "notes", "left_out", …}`.
        """
        return predicted(about, model, gpu, batch, image_tokens, text_tokens, new_tokens, policy)

    if what_if.__doc__:  # python -OO has none
        what_if.__doc__ = what_if.__doc__.replace("MODELS", ", ".join(MODELS)).replace("GPUS", ", ".join(GPUS))
    return what_if
