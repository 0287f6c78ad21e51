"""Equal memory on the page: parameters, in whole percent as sliders have them, with which arms store the same share of a full cache.

Mean over the decode steps of the longest answer, as :func:`avl.ui.settings.predict` tells it. ``/compare`` and the command line set the
same to thousandths of a percent.
"""

from __future__ import annotations

from typing import Any

from avl.policies import POLICIES, Policy
from avl.policies.equal_memory import Workload, answer_steps, at_whole_percent, sets_memory, stored_share
from avl.ui.errors import sentence
from avl.ui.prompts import PromptSize
from avl.ui.settings import About, check, number, policy, shape_of


def equal(chosen: Any, index: Any, about: About, prompt: PromptSize | None = None, to: Any = None) -> dict[str, Any]:
    """Return the parameters with which arm ``index`` stores what arm ``to`` stores; ``{"error": sentence}`` where it cannot.

    Args:
        chosen: settings, as for :func:`avl.ui.settings.prepare`.
        index: of the arm to set.
        about: the model that is asked.
        prompt: of the chosen pictures and question; None for the warm-up's.
        to: index of the other arm; may be left out where there are two.
    """
    try:
        checked = check(chosen, about)
        policies = checked["policies"]
        if to is None and len(policies) == 2 and index in (0, 1):
            to = 1 - index
        if not all(type(one) is int and 0 <= one < len(policies) for one in (index, to)) or index == to:
            raise ValueError("There is no other arm to compare with.")
        steps = answer_steps(shape_of(checked, prompt or about.prompt((), ""), about))
        return _values(_at(policies[index], stored_share(policies[to], steps), about, steps))
    except ValueError as error:
        return {"error": sentence(error)}


def equal_all(chosen: Any, about: About, prompt: PromptSize | None = None, index: Any = None, share: Any = None) -> dict[str, Any]:
    """Return one arm of every policy, all at the same memory.

    Args:
        chosen: settings; an arm among them whose policy it is keeps its other parameters.
        about: the model that is asked.
        prompt: of the chosen pictures and question; None for the warm-up's.
        index: of the arm whose memory the others get, and which stays as it is; None for the first A-VL, else the first with a budget.
        share: of a full cache to store, above 0 and at most 1, in place of an arm's.

    Returns:
        ``arms``, in the order of the registry, full attention included; ``left_out``, a sentence for each policy that cannot store that
        share; ``share``. Or ``error``, one sentence.
    """
    try:
        checked = check(chosen, about)
        steps = answer_steps(shape_of(checked, prompt or about.prompt((), ""), about))
        to = None
        if share is None:
            to = _chosen(checked["policies"], index)
            to.check_model(about.layers)
            share = stored_share(to, steps)
        else:
            share = number({"share": share}, "share", 0, 1, whole=False)
            if share == 0:
                raise ValueError("Share must be above 0.")
        own = {one.name: one for one in reversed(checked["policies"])}
        arms, left_out = [], []
        for name in POLICIES:
            one = to if to is not None and to.name == name else own.get(name) or policy({"policy": name})
            if one != to and one.budget is not None:
                try:
                    one = _at(one, share, about, steps)
                except ValueError as error:
                    left_out.append(sentence(error))
                    continue
            arms.append({"policy": name, **_values(one)})
        return {"arms": arms, "left_out": left_out, "share": share}
    except ValueError as error:
        return {"error": sentence(error)}


def _chosen(policies: tuple[Policy, ...], index: Any) -> Policy:
    if index is None:
        return sets_memory(policies)
    if type(index) is not int or not 0 <= index < len(policies):
        raise ValueError("There is no such arm.")
    return sets_memory([policies[index]])


def _at(one: Policy, share: float, about: About, steps: Workload) -> Policy:
    one.check_model(about.layers)
    return at_whole_percent(one, share, steps)


def _values(one: Policy) -> dict[str, Any]:
    return {key: value for key, value in one.to_dict().items() if key != "name"}
