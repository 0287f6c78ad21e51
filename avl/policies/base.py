"""Policy interface: a frozen dataclass that maps the sizes of a prompt to KV budgets, layer by layer, through five verbs.

| verb | asked | answer |
|---|---|---|
| ``prune`` | between two layers in prefill | image tokens that stay in the hidden states |
| ``store`` | after a layer's prefill | tokens to store: pinned image tokens and an evictable window |
| ``select`` | at a decode step | image tokens to read: some, or all that are stored |
| ``cover`` | where tokens are ranked | image tokens that are held whatever they score |
| ``observe`` | after a layer's prefill, after a step | which scores rank the window, and so which token is evicted |

Verbs return counts, not indices; ``cover`` names tokens, but knows no scores either. All depend on nothing but sizes, so memory, CUDA
graphs and the cost model (cost.py) know them before a run. Turning scores into indices (avl/cache/ranking.py) and moving keys and values
(avl/cache/layer.py) is the same for all policies.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from fractions import Fraction
from typing import Any, ClassVar, Literal, Self


@dataclass(frozen=True)
class PromptShape:
    """Sizes of one row: image and text tokens of its prompt, max new tokens, and the model's decoder layers.

    In a later turn of a conversation the prompt is all that came before the turn's answer, and ``past`` says what of it the turn before has
    left in the cache. What the turn itself brings, pictures included, is what its first pass feeds.
    """

    n_image: int
    n_text: int
    max_new_tokens: int
    n_layers: int
    past: PastTurn | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.n_image + self.n_text

    @property
    def new(self) -> int:
        """Tokens that the first pass of this turn feeds: the whole prompt, or what follows the turn before."""
        return self.length if self.past is None else self.length - self.past.shape.length - self.past.steps

    @property
    def new_image(self) -> int:
        """Image tokens that the first pass of this turn feeds: all of them, or those of the pictures that a later turn brings."""
        return self.n_image if self.past is None else self.n_image - self.past.shape.n_image

    @property
    def arrivals(self) -> tuple[int, ...]:
        """Image tokens that every turn brought, this one's last."""
        before = () if self.past is None else self.past.shape.arrivals
        return (*before, self.new_image)


@dataclass(frozen=True)
class PastTurn:
    """A turn that another one follows: its sizes, and the decode steps that it took."""

    shape: PromptShape
    steps: int


@dataclass(frozen=True)
class KVBudget:
    """The number of tokens that one layer keeps of one row.

    Attributes:
        image: pinned image tokens, which are never evicted.
        window: most evictable tokens stored between steps, None for unlimited.
        recent: newest tokens of the window that are never evicted.
        sinks: oldest tokens of the window that are never evicted.
        prompt: most prompt tokens in the window after prefill, None for as many as ``window`` allows.
        turn: of what a later turn of a conversation feeds, most tokens in the window after that pass, likewise.
    """

    image: int
    window: int | None = None
    recent: int = 0
    sinks: int = 0
    prompt: int | None = None
    turn: int | None = None

    def start(self, tokens: int) -> int:
        """Return how many of the window's ``tokens`` prompt tokens are stored after prefill."""
        return min(count for count in (tokens, self.window, self.prompt) if count is not None)

    def capacity(self, start: int, max_new_tokens: int) -> int:
        """Return the number of the window's slots: one more than ``window``: a new token is stored and read before another is evicted.

        ``start``: tokens that are in it before the first step.
        """
        longest = start + max_new_tokens
        return longest if self.window is None else min(self.window + 1, longest)


@dataclass(frozen=True)
class Observation:
    """Which attention scores rank the tokens of the window.

    Attributes:
        heads: "shared": mean over all query heads, one set of tokens per layer; "kv": mean per key-value head, one set for each.
        queries: number of last prompt queries whose scores are summed, None for all.
        pool: width of a max-pool over positions (stride 1), odd; 1 for none.
        decode: whether decode steps add their scores and a full window evicts its weakest token; if not, only the prompt's scores count.
    """

    heads: Literal["shared", "kv"]
    queries: int | None = None
    pool: int = 1
    decode: bool = True


@dataclass(frozen=True)
class Coverage:
    """Image tokens (0 to N - 1) that a layer holds whatever they score.

    Attributes:
        stored: tokens that are stored, and that stay where this layer's scores prune; where not all fit, the first ones.
        core: how many of them, counted from the first, are always in the core.
    """

    stored: tuple[int, ...]
    core: int


@dataclass(frozen=True)
class Param:
    """Description of a policy's parameter, for sliders, command lines, API documentation and error messages.

    Attributes:
        name: of the dataclass field.
        default: of the dataclass field, None if it has none.
        required: whether the field has no default.
        label: two or three words for a slider.
        help: a phrase that says what it sets.
        unit: "%" for a percentage above 0 and at most 100, else the unit of a whole number.
        low: lower end of a slider, and the smallest valid whole number.
        high: upper end of a slider.
        optional: whether None is valid and switches it off.
        start: initial value of a slider.
        off: whether it starts switched off, its slider at ``start``.
        odd: whether only odd numbers are valid.
        choices: the valid words of a parameter that is not a number.
    """

    name: str
    default: Any
    required: bool
    label: str
    help: str
    unit: str
    low: int
    high: int
    optional: bool
    start: int | None
    off: bool
    odd: bool
    choices: tuple[str, ...]

    @classmethod
    def of(cls, one: Field[Any]) -> Param:
        """Return the description in a dataclass field made by :func:`param`."""
        required = one.default is MISSING
        return cls(name=one.name, default=None if required else one.default, required=required, **one.metadata["param"])

    def check(self, value: object) -> Any:
        """Return ``value`` as plain Python; raise ValueError with the name, the value and the valid range unless it is valid."""
        if (value is None and self.optional) or (isinstance(value, str) and value in self.choices):
            return value
        found = None if self.choices else number(value)
        if self.unit == "%":
            valid = found is not None and 0 < found <= 100
        else:
            valid = isinstance(found, int) and self.low <= found <= MOST and not (self.odd and found % 2 == 0)
        if not valid:
            raise ValueError(f"{self.name}={shown(value)} is out of range: {self.name} is {self.help}, {self.range}")
        return found

    @property
    def range(self) -> str:
        """The valid values in words."""
        if self.choices:
            return " or ".join(repr(choice) for choice in self.choices)
        kind = "an odd" if self.odd else "a whole"
        words = "above 0 and at most 100" if self.unit == "%" else f"{kind} number of at least {self.low}"
        return f"{words}, or None for off" if self.optional else words


def param(
    default: Any = MISSING,
    *,
    help: str,
    label: str = "",
    unit: str = "%",
    low: int = 1,
    high: int = 100,
    optional: bool = False,
    start: int | None = None,
    off: bool = False,
    odd: bool = False,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a dataclass field that describes itself; the arguments are the attributes of :class:`Param`."""
    if start is None and isinstance(default, int):
        start = default
    about = {
        "label": label, "help": help, "unit": unit, "low": low, "high": high, "optional": optional, "start": start, "off": off, "odd": odd,
        "choices": choices,
    }  # fmt: skip
    return field(default=default, metadata={"param": about})


@dataclass(frozen=True)
class Policy:
    """Base class of all policies, which stores and reads everything. Override the verbs that differ."""

    name: ClassVar[str] = "Policy"
    """Key in ``POLICIES`` and in a trace."""
    title: ClassVar[str] = "Policy"
    """The method's name in the literature."""
    pins_image: ClassVar[bool] = True
    """True: image tokens are stored apart and never evicted; False: they are in the window like any other token."""
    _params: ClassVar[tuple[Param, ...]]
    budget: ClassVar[str | None] = None
    """Name of the percentage parameter that sets how much is stored, None if there is none."""

    def __post_init__(self) -> None:
        for one in self.params():
            object.__setattr__(self, one.name, one.check(getattr(self, one.name)))

    @classmethod
    def params(cls) -> tuple[Param, ...]:
        """Return the policy's parameters in order."""
        if "_params" not in vars(cls):  # an inherited one would be the parent's
            cls._params = tuple(Param.of(one) for one in fields(cls))
        return cls._params

    def prune(self, layer: int, shape: PromptShape) -> int | None:
        """Return how many of a turn's new image tokens, ranked by the scores of ``layer - 1``, enter ``layer`` in its first pass.

        None for all that remain.
        """
        return None

    def store(self, layer: int, shape: PromptShape) -> KVBudget:
        """Return the budget of ``layer`` after its prefill, or after the first pass of a later turn: what earlier turns left included."""
        return KVBudget(image=shape.n_image)

    def select(self, layer: int, shape: PromptShape) -> int | None:
        """Return how many image tokens ``layer`` reads at a core step; None to read every stored token at every step."""
        return None

    def cover(self, layer: int, shape: PromptShape) -> Coverage | None:
        """Return the image tokens that ``layer`` holds whatever they score; None where scores alone decide."""
        return None

    def is_update(self, t: int) -> bool:
        """Return whether decode step ``t`` (1, 2, …) reads everything stored and re-selects the core."""
        return False

    def observe(self, layer: int, shape: PromptShape) -> Observation | None:
        """Return which scores rank the window of ``layer``; None to rank it by age."""
        return None

    def check_model(self, n_layers: int) -> None:
        """Raise ValueError if the parameters are invalid for a model with ``n_layers`` decoder layers."""

    def present(self, layer: int, shape: PromptShape) -> int:
        """Return the number of image tokens in the hidden states at ``layer`` in the turn's first pass."""
        kept = (self.prune(index, shape) for index in range(layer + 1))
        return min((count for count in kept if count is not None), default=shape.new_image)

    def left(self, layer: int, shape: PromptShape) -> int:
        """Return the number of pinned image tokens that ``layer`` stores of the turns before."""
        past = shape.past
        while past is not None and past.shape.past is not None and not past.shape.new_image:
            past = past.shape.past  # a turn without pictures leaves what it found
        return self.store(layer, past.shape).image if past is not None and self.pins_image else 0

    def at_stored(self, fraction: float, n_image: int, n_text: int, n_layers: int) -> Self:
        """Return this policy with its budget set to store ``fraction`` (0 to 1) of a full cache of ``n_image + n_text`` tokens per layer.

        Raises:
            ValueError: the policy cannot store that fraction to within one token per layer.
        """
        from avl.policies.cost import stored_after_prefill  # cost imports this file

        share_of_all = number(fraction)
        if share_of_all is None or not 0 < share_of_all <= 1:
            raise ValueError(f"fraction={shown(fraction)} is out of range: a stored share is above 0 and at most 1")
        fraction, n_layers = share_of_all, whole("n_layers", n_layers, 1)
        self.check_model(n_layers)
        shape = PromptShape(whole("n_image", n_image, 0), whole("n_text", n_text, 0), 0, n_layers)
        full = n_layers * shape.length
        if self.budget is None:
            if fraction != 1:
                raise ValueError(f"{self.title} stores everything: a stored share of {fraction:g} is not possible, only 1")
            return self

        def stored(thousandths: int) -> int:
            return stored_after_prefill(self.with_budget(thousandths), shape)

        target = fraction * full
        nearest = nearest_budget(stored, target)
        count = stored(nearest)
        if abs(count - target) > n_layers:
            least, most = (stored(value) / full for value in (1, 100_000))
            raise ValueError(
                f"{self.title} cannot store {fraction:.1%} of {shape.length} tokens: with {self.budget} from 0.001 to 100 "
                f"it stores {least:.1%} to {most:.1%}"
            )
        return self.with_budget(_roundest(nearest, lambda value: stored(value) == count))

    def changed(self, **values: Any) -> Self:
        """Return the policy with these parameters changed; others that this leaves no room for are lowered to fit.

        Raises:
            ValueError: a value is out of range.
        """
        return replace(self, **values)

    def with_budget(self, thousandths: int) -> Self:
        """Return the policy with its budget parameter set to this many thousandths of a percent."""
        assert self.budget is not None
        return replace(self, **{self.budget: _plain(thousandths)})

    @property
    def label(self) -> str:
        """Title and parameters for tables and the page, for example ``A-VL S=45 C=30 K=3 P=90``."""
        shown = []
        for one in self.params():
            value = getattr(self, one.name)
            if isinstance(value, int | float):
                shown.append(f"{one.name}={value:g}")
            elif value != one.default:
                shown.append(f"{one.name}={value}")
        return " ".join([self.title, *shown])

    def to_dict(self) -> dict[str, Any]:
        """Return the name and parameters as plain values, for a trace."""
        return {"name": self.name, **asdict(self)}


def nearest_budget(stored: Callable[[int], float], target: float) -> int:
    """Return the budget, in thousandths of a percent, whose stored amount is nearest to ``target``; of two, the larger budget.

    Args:
        stored: budget -> what a policy with it stores, which grows with the budget.
        target: in the same unit.
    """
    low, high = 1, 100_000
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if stored(middle) >= target else (middle + 1, high)
    return min((low, max(1, low - 1)), key=lambda value: abs(stored(value) - target))


def _plain(thousandths: int) -> float:
    """Return thousandths of a percent as a percentage, as an int if it is whole."""
    return thousandths // 1000 if thousandths % 1000 == 0 else thousandths / 1000


def _roundest(value: int, same: Any) -> int:
    """Return the number near ``value`` (thousandths) with the fewest decimals for which ``same`` holds, else ``value``."""
    for unit in (1000, 100, 10):
        for candidate in (math.ceil(value / unit) * unit, value // unit * unit):
            if 0 < candidate <= 100_000 and same(candidate):
                return candidate
    return value


def share(percent: float, n: int) -> int:
    """Return ``ceil(percent * n / 100)`` in exact decimal arithmetic: 7.1 counts as 71/10, without float error."""
    exact = Fraction(str(percent)) * n / 100
    return -(-exact.numerator // exact.denominator)


MOST = 10**9  # of any whole number: what is larger is a mistake, and sizes made of it would overflow


def shown(value: object) -> str:
    """Return a short, one-line ``repr`` for error messages; never raises."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an int of 5000 digits, or a __repr__ that fails
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:60]}… ({type(value).__name__})"


def number(value: object) -> int | float | None:
    """Return a real number (numpy's too) as Python's int or float, None for anything else, bools included, or one beyond floats."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        exact = float(value)
    except OverflowError:
        return None
    return int(value) if isinstance(value, numbers.Integral) else exact


def whole(name: str, value: object, least: int, most: int = MOST) -> int:
    """Return ``value`` as an int.

    Raises:
        ValueError: it is not a whole number from ``least`` to ``most``.
    """
    found = number(value)
    if not isinstance(found, int) or not least <= found <= most:
        raise ValueError(f"{name}={shown(value)} is out of range: it is a whole number from {least} to {most}")
    return found
