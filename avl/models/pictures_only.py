"""Processors without their part for videos, which needs torchvision: the same class, files and inputs for pictures."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin

from avl._compat import allow_missing
from avl.models.pixtral_processor import PixtralProcessor, read_pixtral

_VIDEOS = "video_processor"
_NAMED_IN = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "tokenizer_config.json")
"""Files that may name the processor's class, in the order in which AutoProcessor looks."""

_ONLY_FOR_VIDEOS = ("num2words",)
"""Optional packages that a processor asks for when it is made and uses for videos only."""


def read_processor(place: str, revision: str | None, folder: Path | None, config: Any) -> Any:
    """Return a checkpoint's processor; without its part for videos where that cannot be had: no torchvision, or no settings of it.

    Args:
        place: folder or Hub id.
        revision: branch, tag or commit of a Hub repository; its code is never run.
        folder: of the files; of a Hub repository, in the cache.
        config: the model's config.

    Raises:
        ImportError: what pictures need is not installed.
        Exception: whatever AutoProcessor raises of files that are broken or missing.
    """
    import transformers

    try:
        found = transformers.AutoProcessor.from_pretrained(place, revision=revision, trust_remote_code=False)
    except Exception:  # of any file or package: what pictures need as well is missed again below
        name = _processor_name(folder)  # its files are in the cache only now
        if name != PixtralProcessor.__name__:
            kind = _processor_class(name, config)
            if kind is None:
                raise
            return kind.from_pretrained(place, revision=revision or "main", trust_remote_code=False)
    else:
        # AutoProcessor falls back to a tokenizer alone where it cannot import the class
        if hasattr(found, "image_processor") or _processor_name(folder) != PixtralProcessor.__name__:
            return found
    assert folder is not None, "the name was read there"
    return read_pixtral(place, revision, folder)


def _processor_name(folder: Path | None) -> Any:
    """Return the class name that a checkpoint's files give its processor, None without one."""
    try:
        files = [json.loads((folder / name).read_text("utf-8")) for name in _NAMED_IN if folder is not None and (folder / name).is_file()]
        return next((file["processor_class"] for file in files if file.get("processor_class")), None)
    except (ValueError, AttributeError):  # AutoProcessor has failed of that file too
        return None


def _processor_class(name: Any, config: Any) -> Any | None:
    """Return the class of a checkpoint's processor without videos, None where it has no part for them or is unknown.

    Args:
        name: that the checkpoint's files give it.
        config: the model's.
    """
    import transformers

    kinds = transformers.models.auto.processing_auto.PROCESSOR_MAPPING
    found = getattr(transformers, name, None) if isinstance(name, str) else kinds.get(type(config), None)
    if not isinstance(found, type) or not issubclass(found, transformers.ProcessorMixin) or _VIDEOS not in found.get_attributes():
        return None
    return pictures_only(found)


def pictures_only(kind: Any) -> Any:
    """Return a subclass of a processor's class that has no part for videos.

    Args:
        kind: a class whose constructor takes a ``video_processor``.
    """
    place = kind.get_attributes().index(_VIDEOS)

    class PicturesOnly(kind):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in kind.get_attributes() if name != _VIDEOS]

        @classmethod
        def from_args_and_dict(cls, args: list[Any], processor_dict: dict[str, Any], **options: Any) -> Any:
            saved = {name: value for name, value in processor_dict.items() if name != _VIDEOS}
            with allow_missing(kind, _ONLY_FOR_VIDEOS):
                return super().from_args_and_dict([*args[:place], None, *args[place:]], saved, **options)

        @functools.wraps(kind.__call__)
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            if len(arguments) > 2 or options.get("videos") is not None:
                raise ImportError(f"{kind.__name__} was loaded for pictures only: videos need torchvision")
            return super().__call__(*arguments, **options)

        def apply_chat_template(self, *arguments: Any, **options: Any) -> Any:
            # SmolVLM's reads settings of videos for every conversation
            return ProcessorMixin.apply_chat_template(self, *arguments, **options)

    PicturesOnly.__name__ = PicturesOnly.__qualname__ = kind.__name__
    return PicturesOnly
