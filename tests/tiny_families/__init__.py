"""A tiny random model of every family, one module each, named as the family's model type. A family without one fails the tests."""

from __future__ import annotations

import importlib
import pkgutil

from tiny_families.base import Tiny

_ALL: dict[str, Tiny] = {
    name: tiny
    for module in pkgutil.iter_modules(__path__)
    if module.name != "base"
    for name, tiny in importlib.import_module(f"tiny_families.{module.name}").MODELS.items()
}

MODELS: dict[str, Tiny] = {name: tiny for name, tiny in _ALL.items() if tiny.available}
"""Readable id -> tiny model."""

ABSENT = {tiny.family for tiny in _ALL.values() if not tiny.available}
"""Families that this release of transformers has no processor for without torchvision."""
