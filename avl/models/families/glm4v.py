"""GLM-4V: as Qwen2-VL, with its own text decoder (partial rotary embedding in pairs, four norms a layer)."""

from __future__ import annotations

from typing import ClassVar

from avl.models.families.qwen2_vl import Qwen2VL


class Glm4v(Qwen2VL):
    """``Glm4vForConditionalGeneration``."""

    model_type: ClassVar[str] = "glm4v"
    prefix: ClassVar[str] = "Glm4v"
    texts: ClassVar[tuple[str, ...]] = ("glm4v_text",)
