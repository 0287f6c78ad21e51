"""What every implementation of the window's bookkeeping must do, against lists that are kept by hand."""

from dataclasses import dataclass, field

import pytest
import torch
from pairwise import pairwise
from torch import Tensor

from avl.kernels import window_ops
from avl.kernels.window import reference
from avl.kernels.window.types import FREE, Window

STEPS = 14


@dataclass
class ByHand:
    """One window: slot -> (token index, sum). The rules as the paper gives them, token by token."""

    window: Window
    capacity: int
    slots: dict[int, list[float]] = field(default_factory=dict)
    next: int = 0
    entered: int = 0

    def enter(self) -> None:
        self.slots[self.next] = [self.window.prompt + self.entered, 0.0]
        self.entered += 1

    def leave(self, by_sum: bool) -> None:
        window = self.window
        if window.size is None or len(self.slots) <= window.size:
            self.next = min(set(range(self.capacity)) - set(self.slots), default=self.capacity - 1)
            return
        newest = window.prompt + self.entered
        may = [slot for slot, (token_idx, _) in self.slots.items() if window.sinks <= token_idx < newest - window.recent]
        self.next = min(may, key=lambda slot: (self.slots[slot][1] if by_sum else 0, self.slots[slot][0]))
        del self.slots[self.next]


WINDOWS = {
    "unlimited": (Window(prompt=9, start=9, size=None, recent=0, sinks=0), 9 + STEPS),
    "filling": (Window(prompt=7, start=7, size=12, recent=6, sinks=0), 13),
    "full": (Window(prompt=20, start=8, size=8, recent=4, sinks=0), 9),
    "sinks": (Window(prompt=20, start=9, size=9, recent=5, sinks=4), 10),
    "room at the end": (Window(prompt=5, start=5, size=19, recent=9, sinks=0), 5 + STEPS),
}


@pairwise(name=WINDOWS, heads=[1, 3], sums=[True, False], ties=[False, True])
def test_window_every_step_follows_the_rules(name: str, heads: int, sums: bool, ties: bool, impl: str, device: torch.device) -> None:
    window, capacity = WINDOWS[name]
    layers, rows = 3, 2
    draw = torch.Generator().manual_seed(5)
    shape = (layers, rows, heads)
    token_idx = torch.full((*shape, capacity), FREE)
    stored = list(range(window.sinks)) + list(range(window.prompt - window.start + window.sinks, window.prompt))
    token_idx[..., : window.start] = torch.tensor(stored)
    accumulated = torch.rand(*shape, capacity, generator=draw).to(device) if sums else None
    token_idx, slot = token_idx.to(device), torch.full(shape, window.start).to(device)
    entered = torch.zeros_like(slot)
    lengths = ((11, torch.zeros(rows, dtype=torch.long, device=device)), (4, torch.zeros(rows, dtype=torch.long, device=device)))
    hands = {}
    for place in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
        hand = ByHand(window, capacity, next=window.start)
        hand.slots = {s: [stored[s], float(accumulated[(*place, s)]) if sums else 0.0] for s in range(window.start)}
        hands[tuple(place)] = hand
    ops = window_ops(device, impl)
    addresses = [tensor.data_ptr() for tensor in (token_idx, slot, entered)]
    for _ in range(STEPS):
        ops.enter_window(window, token_idx, accumulated, slot, entered, lengths)
        for hand in hands.values():
            hand.enter()
        check(hands, token_idx, accumulated)
        count = len(next(iter(hands.values())).slots)
        for image, length in lengths:
            assert length.tolist() == [image + count] * rows
        if accumulated is not None:
            more = (torch.rand(accumulated.shape, generator=draw) < 0.3).float() if ties else torch.rand(accumulated.shape, generator=draw)
            accumulated += more.to(device)
            for place, hand in hands.items():
                for s, entry in hand.slots.items():
                    entry[1] = float(accumulated[(*place, s)])
        ops.leave_window(window, token_idx, accumulated, slot, entered)
        for place, hand in hands.items():
            hand.leave(sums)
            assert int(slot[place]) == hand.next
        check(hands, token_idx, None)
    assert [tensor.data_ptr() for tensor in (token_idx, slot, entered)] == addresses


def check(hands: dict[tuple[int, ...], ByHand], token_idx: Tensor, accumulated: Tensor | None) -> None:
    for place, hand in hands.items():
        held = {slot: number for slot, number in enumerate(token_idx[place].tolist()) if number != FREE}
        assert held == {slot: entry[0] for slot, entry in hand.slots.items()}
        if accumulated is not None:
            newest = max(hand.slots, key=lambda slot: hand.slots[slot][0])
            assert float(accumulated[(*place, newest)]) == 0.0


@pytest.mark.parametrize("name", ["filling", "unlimited"])
def test_enter_window_one_length_is_enough(name: str, impl: str, device: torch.device) -> None:
    """A policy without a core has one extent."""
    window, capacity = WINDOWS[name]
    token_idx = torch.full((2, 1, 1, capacity), FREE, device=device)
    slot = torch.full((2, 1, 1), window.start, device=device)
    entered, length = torch.zeros_like(slot), torch.zeros(1, dtype=torch.long, device=device)
    window_ops(device, impl).enter_window(window, token_idx, None, slot, entered, ((11, length),))
    assert length.tolist() == [11 + window.start + 1]
    assert entered.flatten().tolist() == [1, 1]


@pytest.mark.parametrize("case", ["sums", "ties", "no sums", "no candidate"])
def test_leave_window_large_windows_lose_what_the_specification_says(case: str, impl: str, device: torch.device) -> None:
    """Windows of more slots than a program has lanes: the weakest may be behind any of them, and equals may be far apart."""
    draw = torch.Generator().manual_seed(11)
    capacity, shape = 1301, (2, 2, 2)
    token_idx = torch.stack([torch.randperm(capacity, generator=draw) for _ in range(8)]).view(*shape, capacity)
    token_idx[..., ::97] = FREE
    sums = None if case == "no sums" else torch.rand(*shape, capacity, generator=draw)
    if case == "ties":
        sums = (sums * 3).floor()
    recent = capacity if case == "no candidate" else 200
    window = Window(prompt=capacity - 1, start=1200, size=1200, recent=recent, sinks=4)
    results = []
    for ops in (window_ops(device, impl), reference):
        state = [token_idx.clone(), None if sums is None else sums.clone(), torch.full(shape, 3), torch.ones(shape, dtype=torch.long)]
        state = [None if tensor is None else tensor.to(device) for tensor in state]
        ops.leave_window(window, *state)
        results.append(state)
    for one, two in zip(*results, strict=True):
        assert one is two is None or torch.equal(one, two)
