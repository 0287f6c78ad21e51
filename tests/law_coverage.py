"""Count what the invariants' tests cover, to compare two versions of the suite: ``python tests/law_coverage.py [pytest's arguments]``.

Only collects. A law is a test function. A triple is a law, an architecture and a policy class, as the collected cases name them ("-" where
the function chooses them itself). A pair is a law and two values of two of its parameters: a covering set of cases has all pairs of the
full product, so this number may not fall either.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest

INVARIANTS = Path(__file__).resolve().parent / "invariants"


class Cases:
    """A pytest plugin that keeps the cases that would run."""

    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = list(session.items)


def policy_classes(item: pytest.Item, params: dict[str, Any]) -> set[str]:
    """Return the classes of the policies that a case names: objects, or keys of a table in its module."""
    values = [value for name, value in params.items() if name in ("policy", "case", "pair")]
    keys = [key for value in values for key in (value if isinstance(value, tuple) else (value,))]
    tables = [table for table in vars(item.module).values() if isinstance(table, dict)]  # type: ignore[attr-defined]
    found = [table[key] for key in keys if isinstance(key, str) for table in tables if key in table] or keys
    found = [value[0] if isinstance(value, tuple) else value for value in found]
    return {type(value).__name__ for value in found if type(value).__module__.startswith("avl.")} or {"-"}


def count(items: list[pytest.Item]) -> dict[str, int]:
    """Return how many cases, laws, triples and pairs ``items`` hold."""
    laws, triples, pairs = set(), set(), set()
    for item in items:
        law = item.originalname  # type: ignore[attr-defined]
        params = getattr(item, "callspec", None)
        values: dict[str, Any] = dict(params.params) if params else {}
        architecture = str(values.get("architecture", values.get("tiny", "-")))
        laws.add(law)
        triples |= {(law, architecture, policy) for policy in policy_classes(item, values)}
        written = [(name, repr(value)) for name, value in sorted(values.items())]
        pairs |= {(law, *pair) for pair in itertools.combinations(written, 2)} or {(law, *written)}
    return {"cases": len(items), "laws": len(laws), "triples": len(triples), "pairs": len(pairs)}


def main(arguments: list[str]) -> int:
    cases = Cases()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *(arguments or [str(INVARIANTS)])], plugins=[cases])
    if code or not cases.items:
        print(said.getvalue(), file=sys.stderr)
        return int(code) or 1
    for name, number in count(cases.items).items():
        print(f"{name:8} {number:5}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
