"""The A-VL paper's settings per model (arXiv 2409.14846, Table 3)."""

from __future__ import annotations

from dataclasses import replace

from avl.policies.avl import AVL

TABLE_3: tuple[tuple[str, str, tuple[tuple[int, int | None, int | None, int | None, int | None], ...]], ...] = (
    ("llava-1.5-7b", "LLaVA-1.5 7B", ((40, None, None, None, None), (40, 30, 3, None, None), (45, 30, 3, 90, None), (45, 30, 3, 90, 50))),
    ("llava-1.5-13b", "LLaVA-1.5 13B", ((40, None, None, None, None), (45, 30, 3, None, None), (45, 30, 3, 90, None), (45, 30, 3, 90, 60))),
    ("llava-1.6-7b", "LLaVA-1.6 7B", ((40, None, None, None, None), (45, 30, 3, 90, None), (45, 30, 3, 90, 70))),
    ("llava-1.6-13b", "LLaVA-1.6 13B", ((40, None, None, None, None), (45, 30, 3, 90, None), (45, 30, 3, 90, 70))),
)
"""Table 3 by model: key, name to show, and its rows of (S, C, K, P, T)."""

SPREAD = 33
"""``spread`` of :data:`SPREAD_PRESETS`, in % of the image tokens."""

PRESETS: dict[str, AVL] = {model: AVL(*settings[-1]) for model, _, settings in TABLE_3}  # type: ignore[arg-type]
"""The last row of each model in Table 3: the smallest cache that the paper calls near-lossless."""

NEUTRAL = "llava-1.5-13b"
"""Row to start from with models that the paper did not measure: the least aggressive of its last rows for 576 image tokens."""

SPREAD_PRESETS: dict[str, AVL] = {model: replace(policy, spread=SPREAD) for model, policy in PRESETS.items()}
"""The same with spread, which is ours and not the paper's: the same bytes stored and read."""

UNMEASURED = "The A-VL paper did not measure this model: its settings here are those of LLaVA-1.5 13B."
"""What to say of :data:`NEUTRAL` where it is used."""
