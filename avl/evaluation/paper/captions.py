"""CIDEr of captions (Vedantam et al., CVPR 2015) by pycocoevalcap, without the other metrics that lmms-eval computes with it.

lmms-eval starts java 14 times for seven metrics; CIDEr needs the tokenizer alone, once for references and once for each set of captions.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

from avl.evaluation.paper.evaluator import INSTALL

Tokenized = dict[int, list[str]]


def require_captions() -> None:
    """Raise OSError where CIDEr cannot be computed: asked before captions are written."""
    try:
        import pycocoevalcap.cider.cider
        import pycocoevalcap.tokenizer.ptbtokenizer  # noqa: F401
    except ModuleNotFoundError as error:
        raise OSError(f"CIDEr needs {error.name}, which is not installed: {INSTALL[-1]}") from None
    if shutil.which("java") is None:
        raise OSError(
            "CIDEr needs java for its tokenizer, and there is none: install one, such as default-jre-headless, or leave captions out"
        )


def tokenized(texts: Mapping[int, Sequence[str]]) -> Tokenized:
    """Return texts by number in the tokenizer's words, each joined by spaces; a text of no words is empty.

    Raises:
        OSError: there is no java, or the tokenizer failed.
    """
    require_captions()
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    asked = {number: [{"caption": " ".join(text.split())} for text in several] for number, several in texts.items()}
    found: Tokenized = PTBTokenizer().tokenize(asked)
    if {number: len(several) for number, several in found.items()} != {number: len(several) for number, several in texts.items()}:
        raise OSError("the tokenizer of captions failed, see what java said above")
    return found


def cider(captions: Mapping[int, str], references: Tokenized) -> dict[int, float]:
    """Return CIDEr of each caption; what the corpus scores is their mean.

    How much a word counts depends on all references that are given, and not on the captions.

    Args:
        captions: one a picture.
        references: of the same pictures, tokenized.
    """
    from pycocoevalcap.cider.cider import Cider

    written = tokenized({number: [text] for number, text in captions.items()})
    told = {number: references[number] for number in captions}
    _, scores = Cider().compute_score(told, written)
    return dict(zip(told, map(float, scores), strict=True))
