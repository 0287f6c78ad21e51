"""Shared set-up: the checkout is importable, torch uses one thread (the last bit repeats), and no test leaves a model changed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import triton_here  # noqa: F401  (decides how Triton runs before any test module imports it)

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Accept pytest-xdist's options of pyproject.toml where it is missing or off: the tests then run one after another."""
    if not pluginmanager.hasplugin("xdist"):
        group = parser.getgroup("xdist")
        group.addoption("--numprocesses", help="without pytest-xdist: not used")
        group.addoption("--dist", help="without pytest-xdist: not used")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files without a slow test where only those are asked for: each worker imports every file that it collects."""
    if config.option.markexpr == "slow" and collection_path.name.startswith("test_") and collection_path.suffix == ".py":
        text = collection_path.read_text(encoding="utf-8")
        return True if "mark.slow" not in text and "pairwise(" not in text else None
    return None


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture
def model(request: pytest.FixtureRequest):
    """The shared model of the architecture that the test is parametrized with (``architecture``), attached for this test."""
    from random_models import shared_model

    import avl

    model = shared_model(request.getfixturevalue("architecture"))
    avl.attach(model)
    yield model
    avl.detach(model)


@pytest.fixture
def processor(request: pytest.FixtureRequest):
    from random_models import shared_processor

    return shared_processor(request.getfixturevalue("architecture"))
