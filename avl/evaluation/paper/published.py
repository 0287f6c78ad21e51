"""What the A-VL paper printed (arXiv 2409.14846, Tables 2 and 3), as data."""

from __future__ import annotations

from dataclasses import dataclass

from avl.models.checkpoints import CHECKPOINTS
from avl.policies.presets import TABLE_3 as SETTINGS

SCALE = 100
"""The paper prints scores times this."""


@dataclass(frozen=True)
class Benchmark:
    """One of the paper's data sets.

    Attributes:
        title: as the paper calls it.
        metric: the key of lmms-eval's metric that the paper prints.
        score: what that is, in words.
    """

    title: str
    metric: str
    score: str


BENCHMARKS: dict[str, Benchmark] = {
    "docvqa_val": Benchmark("DocVQA", "anls", "ANLS"),
    "textvqa_val": Benchmark("TextVQA", "exact_match", "VQA accuracy"),
    "ocrbench": Benchmark("OCRBench", "ocrbench_accuracy", "share of right answers"),
    "nocaps_val": Benchmark("NoCaps", "nocaps_CIDEr", "CIDEr"),
    "flickr30k_test": Benchmark("Flickr30k", "flickr_CIDEr", "CIDEr"),
}
"""lmms-eval's name of a task -> the paper's data set, in the tables' order. The paper names no splits; these have answers."""

MODELS: dict[str, str] = {model: title for model, title, _ in SETTINGS}
"""The paper's models: short name -> title."""

FULL, FASTV, H2O, OURS = "Full", "FastV", "H2O", "A-VL"

TABLE_2: dict[str, dict[str, tuple[float, ...]]] = {
    "llava-1.5-7b": {
        FULL: (31.20, 48.67, 20.60, 101.88, 73.81),
        FASTV: (27.35, 47.16, 19.30, 101.06, 72.99),
        H2O: (30.34, 48.22, 20.40, 102.23, 73.53),
        OURS: (31.26, 48.44, 20.90, 102.67, 73.81),
    },
    "llava-1.5-13b": {
        FULL: (35.39, 52.86, 22.50, 107.53, 79.69),
        FASTV: (30.27, 50.64, 20.60, 106.41, 78.88),
        H2O: (33.86, 52.72, 22.30, 107.11, 79.15),
        OURS: (35.22, 52.97, 22.40, 107.52, 79.79),
    },
    "llava-1.6-7b": {
        FULL: (74.43, 64.65, 53.10, 88.18, 68.45),
        FASTV: (67.69, 63.15, 48.30, 86.21, 66.73),
        H2O: (72.01, 64.15, 51.10, 88.63, 68.61),
        OURS: (74.46, 64.69, 52.00, 88.14, 68.38),
    },
    "llava-1.6-13b": {
        FULL: (77.23, 67.06, 53.90, 88.12, 66.67),
        FASTV: (70.26, 65.14, 49.10, 87.78, 65.96),
        H2O: (75.85, 66.58, 53.00, 88.33, 66.71),
        OURS: (77.30, 66.97, 53.90, 87.68, 66.52),
    },
}
"""Model -> method -> scores, in the order of :data:`BENCHMARKS`."""

AVERAGES_2: dict[str, dict[str, float]] = {
    "llava-1.5-7b": {FULL: 55.23, FASTV: 53.57, H2O: 54.94, OURS: 55.42},
    "llava-1.5-13b": {FULL: 59.59, FASTV: 57.36, H2O: 59.03, OURS: 59.58},
    "llava-1.6-7b": {FULL: 69.76, FASTV: 66.42, H2O: 68.90, OURS: 69.53},
    "llava-1.6-13b": {FULL: 70.60, FASTV: 67.64, H2O: 70.09, OURS: 70.48},
}
"""Table 2's last column."""

HALF = 0.5
"""What FastV and H2O store of a full cache in Table 2."""


@dataclass(frozen=True)
class Printed:
    """A row of Table 3.

    Attributes:
        stored: of a full cache, in %.
        read: of a full cache, in %.
        scores: of DocVQA, TextVQA, OCRBench and NoCaps.
    """

    stored: int
    read: int
    scores: tuple[float, float, float, float]


TABLE_3: dict[str, tuple[Printed, ...]] = {
    "llava-1.5-7b": (
        Printed(100, 100, (31.20, 48.67, 20.60, 101.88)),
        Printed(46, 46, (31.26, 48.44, 20.90, 102.67)),
        Printed(46, 39, (31.02, 48.44, 21.00, 102.67)),
        Printed(50, 40, (31.02, 48.46, 20.70, 102.34)),
        Printed(48, 38, (30.92, 48.46, 20.50, 102.22)),
    ),
    "llava-1.5-13b": (
        Printed(100, 100, (35.39, 52.86, 22.50, 107.53)),
        Printed(46, 46, (35.37, 52.86, 22.20, 107.61)),
        Printed(50, 40, (35.22, 52.97, 22.40, 107.52)),
        Printed(50, 40, (35.46, 52.83, 22.30, 107.60)),
        Printed(48, 38, (35.43, 52.84, 22.30, 107.59)),
    ),
    "llava-1.6-7b": (
        Printed(100, 100, (74.43, 64.65, 53.10, 88.18)),
        Printed(43, 43, (74.29, 64.76, 51.20, 88.14)),
        Printed(47, 36, (74.46, 64.71, 51.90, 87.43)),
        Printed(45, 35, (74.44, 64.69, 52.00, 87.45)),
    ),
    "llava-1.6-13b": (
        Printed(100, 100, (77.23, 67.06, 53.90, 88.12)),
        Printed(43, 43, (77.30, 66.97, 53.90, 87.68)),
        Printed(47, 36, (76.97, 67.06, 54.40, 87.59)),
        Printed(45, 35, (76.97, 67.06, 54.50, 87.59)),
    ),
}
"""Model -> rows, full attention's first, then one for each setting of :data:`avl.policies.presets.TABLE_3`. Flickr30k is not in it."""

OURS_IS: dict[str, tuple[int, ...]] = {
    "llava-1.5-7b": (0, 0, 0, 0, 0),
    "llava-1.5-13b": (1, 1, 1, 1, 1),
    "llava-1.6-7b": (1, 2, 2, 0, 0),
    "llava-1.6-13b": (0, 0, 0, 0, 0),
}
"""Model -> for each of :data:`BENCHMARKS`, which setting of Table 3 has the score that Table 2 prints as the paper's own method.

Flickr30k is not in Table 3, so its entry is a guess: that of the other tasks, or S=40 alone where those differ."""

MIXED = (
    "The paper's own method in Table 2 is not one setting: its scores are those of Table 3's S=40 row for LLaVA-1.5 7B and LLaVA-1.6 13B, "
    "of the S=45 C=30 K=3 row for LLaVA-1.5 13B, and of several rows for LLaVA-1.6 7B (DocVQA 74.46 with P=90; TextVQA 64.69 and OCRBench "
    "52.00 with P=90 T=70; NoCaps 88.14 with S=40 alone). Each task runs with the setting that its score comes from. Flickr30k is not in "
    "Table 3 and runs with S=40, for LLaVA-1.5 13B with S=45 C=30 K=3."
)
"""What has to stand below Table 2."""


def paper_model(name: str) -> str | None:
    """Return the short name of the paper's model that a name or Hub id means, None if it is none of them."""
    return next((key for key in MODELS if name in (key, CHECKPOINTS[key])), None)
