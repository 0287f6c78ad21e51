"""The threads of compiled kernels: any number, several callers at once, after a fork, and kernels that change."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from kernel_cases import Case, make

from avl.kernels import choose_product, core_attention
from avl.kernels.native import team


def attend(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = make(Case(2, 8, 4, 300, 200, 64, "tokens", lengths=(200, 77)), seed=seed)
    out, scores = core_attention(*inputs.arguments(), scores=True, impl="numba")
    assert scores is not None
    return out, scores


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads_gives_the_same(threads, monkeypatch):
    one = attend(0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for _ in range(20):
        out, scores = attend(0)
        torch.testing.assert_close(out, one[0], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(scores, one[1], rtol=1e-5, atol=1e-8)


def test_callers_at_once_do_not_disturb_each_other(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    wanted = {seed: attend(seed) for seed in range(4)}
    wrong: list[int] = []

    def call(seed: int) -> None:
        for _ in range(50):
            out, scores = attend(seed)
            if not (torch.allclose(out, wanted[seed][0], atol=1e-6) and torch.allclose(scores, wanted[seed][1], atol=1e-7)):
                wrong.append(seed)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in wanted]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not any(caller.is_alive() for caller in callers)
    assert wrong == []


def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    wanted = attend(1)[0]
    child = os.fork()
    if child == 0:  # no assertion may leave the child
        os._exit(0 if torch.allclose(attend(1)[0], wanted, atol=1e-6) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_where_no_thread_can_be_made_the_caller_works_alone(monkeypatch):
    fresh = team._Team()
    fresh._libc = type("Libc", (), {"sem_init": lambda *_: -1, "pthread_create": lambda *_: 11})()
    monkeypatch.setattr(team, "_team", fresh)
    wanted = attend(2)[0]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert torch.allclose(attend(2)[0], wanted, atol=1e-6)


def test_the_digest_covers_every_source():
    here = team.Path(team.__file__).parent
    sources = {file for file in here.parent.rglob("*.py") if "numba" in file.read_text() and "bench" not in file.parts}
    covered = {*here.glob("*.py"), *here.parent.glob("*/numba.py")}
    assert {file for file in sources if "from numba import" in file.read_text()} <= covered


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 16])
@pytest.mark.parametrize(("inputs", "outputs"), [(192, 512), (33, 7), (1, 1), (4096, 41)])
def test_a_product_is_the_linear_layers(rows, inputs, outputs, dtype):
    draw = torch.Generator().manual_seed(rows)
    x, weight, bias = (torch.randn(*shape, generator=draw).to(dtype) for shape in ((rows, inputs), (outputs, inputs), (outputs,)))
    multiply = choose_product("cpu", rows, "numba", dtype=dtype)
    for given in (None, bias):
        exact = torch.nn.functional.linear(x.double(), weight.double(), None if given is None else given.double())
        found = multiply(x, weight, given)
        assert found.dtype == dtype
        limit = torch.finfo(dtype).eps * exact.abs().max() + inputs**0.5 * torch.finfo(torch.float32).eps * exact.abs().max()
        assert float((found.double() - exact).abs().max()) <= limit


def test_a_product_of_many_rows_is_torchs():
    assert choose_product("cpu", 17, dtype=torch.float32) is torch.nn.functional.linear
    assert choose_product("cpu", 4, dtype=torch.float64) is torch.nn.functional.linear
    assert choose_product("cpu", 4, "reference", dtype=torch.float32) is torch.nn.functional.linear
    assert choose_product("cpu", 16, dtype=torch.float32) is not torch.nn.functional.linear
