"""A later turn in ``model.generate``: a whole conversation is compared with what a cache has seen, and the rest is fed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from avl.cache.layout import find_rows, ids_and_mask
from avl.cache.turns import begin_turn
from avl.models.families import family_of

if TYPE_CHECKING:
    from avl.cache.cache import AdaptiveCache


def begin_generated_turn(cache: AdaptiveCache, inputs: Any, max_new_tokens: int) -> None:
    """Compare a whole conversation with what a cache has seen, and begin the turn that feeds the rest (``AdaptiveCache.next_turn``)."""
    ids, mask = ids_and_mask(inputs)
    token, shown = cache.facts.image_token_id, inputs.get("pixel_values") is not None
    if cache.looped or not cache.ids:
        raise ValueError(
            "this cache does not know the tokens that it has seen: run the conversation with model.generate, from input_ids on"
        )
    rows = find_rows(ids, mask, cache.facts.image_token_id)
    if len(rows) != cache.batch_size:
        raise ValueError(f"this cache holds {cache.batch_size} rows, the inputs have {len(rows)}: pass all of them, in their order")
    seen = torch.cat([some.to(ids.device) for some in cache.ids], dim=1)
    pads = [row.pad for row in (cache.rows if cache.turn is None else [past.row for past in cache.turn.pasts])]
    fed = []
    for number, (row, pad_before) in enumerate(zip(rows, pads, strict=True)):
        whole, known = ids[number, row.pad :], seen[number, pad_before:]
        count = min(len(whole), len(known))
        differ = torch.ne(whole[:count], known[:count]).nonzero()
        if len(differ) or len(whole) < len(known):
            at = int(differ[0]) if len(differ) else len(whole)
            raise ValueError(
                f"row {number} of the conversation differs at token {at} from what this cache has seen, {len(known)} tokens: keep prompt "
                "and the answer as they were (a row that ended before others has been fed padding: continue such rows one by one)"
            )
        fed.append(whole[len(known) :].tolist())
    image = [tuple(place for place, one in enumerate(new) if token is not None and one == token) for new in fed]
    _check_generated(cache, image, shown)
    begin_turn(cache, [len(new) for new in fed], [1] * len(fed), max_new_tokens, image)
    assert cache.turn is not None
    cache.turn.ids = ids


def _check_generated(cache: AdaptiveCache, image: list[tuple[int, ...]], shown: bool) -> None:
    """Refuse pictures in a turn that ``generate`` runs.

    Args:
        cache: before the turn.
        image: those of every row's new tokens that are image tokens; the first new token is the answer's last.
        shown: whether there are pixels.

    Raises:
        ValueError: the pixels have no placeholders or these no pixels, an answer ends in one, or ``generate`` cannot count the positions.
    """
    if shown and not any(image):
        raise ValueError(
            "the pictures are in the cache already: leave them out of the inputs, and pass those that the next question brings"
        )
    if not any(image):
        return
    number = next(row for row, places in enumerate(image) if places)
    if not shown:
        raise ValueError(f"row {number} brings a new picture without its pixel_values: pass those of the new pictures, and of no others")
    ended = [row for row, places in enumerate(image) if places[:1] == (0,)]
    if ended:
        raise ValueError(f"the last answer of row {ended[0]} ends in the placeholder of a picture, so that no picture can follow it")
    model = cache.model()
    if model is not None and family_of(model.config).own_positions:
        raise ValueError(
            f"row {number} brings a new picture, and generate counts the positions of {cache.facts.name} over all pictures of a "
            "conversation at once: ask it of an avl.Conversation"
        )
