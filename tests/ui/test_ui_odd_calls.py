"""Odd values of every type in every argument of ``/sweep`` and ``/what_if``: each gives a result or one clear sentence."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fake import Fake
from programs import Program, data_uri, serving
from test_ui_corpus import ODD, check

USUAL: dict[str, list[Any]] = {
    "sweep": [{"url": data_uri()}, "What?", {"S": [20]}, {"policy": "AVL", "S": 45}, 2, 1, 0.0, 1.0, 0, 1, None],
    "what_if": ["llava-1.6-7b", "h100", [1, 8], None, 65, 16, None],
}
RANGES: list[Any] = (
    [{"S": odd} for odd in ODD] + [{"S": [odd]} for odd in ODD] + [{"S": {"from": odd, "to": odd, "step": odd}} for odd in ODD]
)


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with serving(Fake(pace=0.0, prefill=0)) as one:
        yield one


@pytest.mark.parametrize("name", USUAL)
def test_every_argument_gives_a_result_or_a_sentence(program: Program, name: str) -> None:
    usual = USUAL[name]
    cases = [[*usual[:place], odd, *usual[place + 1 :]] for place in range(len(usual)) for odd in ODD]
    cases += [[*usual[:2], over, *usual[3:]] for over in RANGES] if name == "sweep" else []
    cases += [usual, usual[:3], [*usual, 1, 2], []]
    with ThreadPoolExecutor(6) as several:  # most of a call is waiting
        answers = list(several.map(lambda case: program.call(case, 60, name), cases))
    results = 0
    for case, answer in zip(cases, answers, strict=True):
        if answer.error is None:
            results += 1
            value = answer.value
            assert value["sweep"]["end"]["reason"] == "done" if name == "sweep" else value["rows"], case
        else:
            check(f"{case!r:.300}", answer.error)
            assert "failed inside" not in answer.error, case  # a defect of ours, not of the call
    print(f"{len(cases)} inputs, {results} results, {len(cases) - results} sentences")
    assert results > 5
    program.wait_idle()
    assert program.health()[0] == 200
