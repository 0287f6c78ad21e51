"""Qwen2.5-VL: as Qwen2-VL, with windows in the vision tower."""

from __future__ import annotations

from typing import ClassVar

from avl.models.families.qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    """``Qwen2_5_VLForConditionalGeneration``."""

    model_type: ClassVar[str] = "qwen2_5_vl"
    prefix: ClassVar[str] = "Qwen2_5_VL"
    texts: ClassVar[tuple[str, ...]] = ("qwen2_5_vl_text",)
