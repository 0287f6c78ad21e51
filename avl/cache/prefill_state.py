"""State of a prompt during prefill: which token each column of the hidden states holds, the attention mask, and pruning.

What a later turn of a conversation feeds is a prompt too, of its own columns; its image tokens are numbered on from those before.

Shapes: B rows, b rows of a bucket, L current columns of the hidden states, M image tokens among them, n prompt tokens of the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from avl.cache.layout import Row
from avl.cache.ranking import Cover, best, lift


@dataclass
class PromptColumns:
    """Where the tokens of one bucket's rows are in the hidden states.

    Attributes:
        rows: the bucket's rows.
        row_idx: ``[b]``, the same as a tensor.
        pad: columns of left padding.
        length: real columns of each row.
        image: ``[b, M]`` columns of the image tokens, ascending.
        image_idx: ``[b, M]``, which of the conversation's N image tokens each of them holds, ascending.
        window: ``[b, n]`` columns of the window's tokens, ascending.
        asks: whether the last image token is the prompt's last position.
        first_image: number of the first of the prompt's image tokens, those that have left included.
    """

    rows: tuple[int, ...]
    row_idx: torch.Tensor
    pad: int
    length: int
    image: torch.Tensor
    image_idx: torch.Tensor
    window: torch.Tensor
    asks: bool
    first_image: int

    def to(self, device: torch.device) -> None:
        """Move the index tensors to the device of the next layer."""
        self.row_idx, self.window = self.row_idx.to(device), self.window.to(device)
        self.image, self.image_idx = self.image.to(device), self.image_idx.to(device)


class PrefillState:
    """State of one prefill, shared by all layers. Keeps the last query's scores of one layer for the pruning before the next."""

    def __init__(
        self, rows: tuple[Row, ...], buckets: list[tuple[int, ...]], pins_image: bool, before: Sequence[int] | None = None
    ) -> None:
        """Describe ``rows`` as they are fed; ``before``: image tokens that each of them has from earlier turns, by default none."""
        self.columns = []
        for numbers in buckets:
            row, first = rows[numbers[0]], 0 if before is None else before[numbers[0]]
            window = row.text if pins_image else range(row.length)
            images = range(first, first + row.n_image)
            tensors = [torch.tensor(list(columns), dtype=torch.int64) for columns in (row.image, images, window)]
            image, image_idx, window_columns = (tensor.expand(len(numbers), -1) for tensor in tensors)
            self.columns.append(
                PromptColumns(
                    rows=numbers,
                    row_idx=torch.tensor(numbers),
                    pad=row.pad,
                    length=row.length,
                    image=image + row.pad,
                    image_idx=image_idx,
                    window=window_columns + row.pad,
                    asks=bool(row.image) and row.image[-1] == row.length - 1,
                    first_image=first,
                )
            )
        self.length = rows[0].pad + rows[0].length
        self._first_pad = rows[0].pad
        self._starts = torch.tensor([row.pad for row in rows])  # [B] first real column
        self.survivors: torch.Tensor | None = None  # [B, L] columns of the first layer that remain, None for all
        self.scores: list[torch.Tensor] | None = None  # per bucket [b, M]: the last layer's scores of the image tokens
        self.added: list[torch.Tensor] = []  # [B, columns of the first layer, hidden] to add after layers 0, 1, ... (deepstack)
        self._checked: tuple[torch.Tensor, ...] = ()  # masks that check() compared
        self._differ: list[torch.Tensor] = []  # bool [], of each of them: whether it was found wrong
        self._given: torch.Tensor | None = None  # bool [B or 1, 1, L, L] over the first layer's columns: who sees whom beyond causality
        self._mask: torch.Tensor | None = None
        self._valid: torch.Tensor | None = None

    def to(self, device: torch.device) -> None:
        """Move all index tensors before the prompt runs: a copy to a GPU waits for what is queued, so none must be made in a layer."""
        for columns in self.columns:
            columns.to(device)
        self._starts = self._starts.to(device)

    @property
    def padded(self) -> bool:
        """Whether some row is shorter than the tensors."""
        return any(columns.length < self.length for columns in self.columns)

    def valid(self, device: torch.device) -> torch.Tensor | None:
        """Return a bool mask ``[B, L]``, False for padding; None without padding."""
        if not self.padded:
            return None
        if self._valid is None or self._valid.device != device:
            self._valid = torch.arange(self.length, device=device) >= self._starts.to(device)[:, None]
        return self._valid

    def mask(self, device: torch.device) -> torch.Tensor | None:
        """Return a bool mask ``[B or 1, 1, L, L]`` for SDPA, True where a query sees a key; None where plain causal attention suffices."""
        valid = self.valid(device)
        if valid is None and self._given is None:
            return None
        if self._mask is None or self._mask.device != device:
            positions = torch.arange(self.length, device=device)
            seen = (positions <= positions[:, None])[None, None] if self._given is None else self._left(self._given.to(device))
            if valid is not None:
                seen = seen & valid[:, None, None, :]
            # a padded query sees itself: a row of -inf would turn into NaN and spread through the values
            self._mask = seen | (positions == positions[:, None])
        return self._mask

    def _left(self, given: torch.Tensor) -> torch.Tensor:
        """Return the rows and columns of a mask ``[B or 1, 1, L, L]`` over the first layer's columns that remain."""
        if self.survivors is None:
            return given
        columns = self.survivors.to(given.device)
        given = given.expand(len(columns), *given.shape[1:])
        given = given.gather(2, columns[:, None, :, None].expand(-1, 1, -1, given.shape[3]))
        return given.gather(3, columns[:, None, None, :].expand(-1, 1, given.shape[2], -1))

    def check(self, given: torch.Tensor, two_way: bool = False) -> None:
        """Compare the mask that transformers made with ours: its layers would ignore a difference. :meth:`finish` tells what was found.

        Args:
            given: ``[B or 1, 1, L, L]``, bool (True where a query sees a key), or numbers to add to the logits.
            two_way: whether tokens may see later ones too; then the mask of the first layer is taken, and the others must agree with it.
        """
        if any(given is one for one in self._checked):
            return
        visible = (given if given.dtype == torch.bool else given == 0)[..., : self.length]
        positions, valid = torch.arange(self.length, device=given.device), self.valid(given.device)
        wanted = (positions <= positions[:, None])[None, None]
        if two_way and not self._checked:
            self._given = wanted | visible
        if self._given is not None:
            wanted = self._given.to(given.device)
        if valid is not None:
            wanted = wanted & valid[:, None, None, :]
        differs = visible != wanted
        if valid is not None:
            differs &= valid[:, None, :, None]
        self._differ.append(differs.any())
        self._checked = (*self._checked, given)

    def finish(self) -> None:
        """Refuse masks that :meth:`check` found wrong. Waits for the device, so it is asked when the layers are done.

        Raises:
            ValueError: a real token would have seen other tokens.
        """
        if any(map(bool, self._differ)):
            what = "is not causal over" if not self.two_way else "hides some of"
            raise ValueError(f"the model's attention mask {what} the real tokens, which adaptive attention does not compute")

    @property
    def two_way(self) -> bool:
        """Whether some token sees a later one."""
        return self._given is not None

    def real_tokens(self) -> int:
        """Return the number of tokens in the hidden states now, summed over rows, without padding."""
        return sum(len(columns.rows) * columns.length for columns in self.columns)

    def positions(self, device: torch.device) -> torch.Tensor:
        """Return the positions ``[n]`` of row 0's tokens that remain in the hidden states, counted from its first real token."""
        here = self.columns[0]
        if self.survivors is None:
            return torch.arange(here.length, device=device)
        return (self.survivors[0, here.pad :] - self._first_pad).to(device)

    def prune(self, keep: list[int], covers: list[Cover] | None = None, layer: int = 0) -> torch.Tensor | None:
        """Drop image tokens, keeping those with the best scores of the last layer; this object then describes the shortened hidden states.

        A prompt's last position stays also where it is an image token: it ranks the others, and it gives the first token.

        Args:
            keep: per bucket, how many image tokens stay.
            covers: per bucket, the image tokens that stay first, whatever they score.
            layer: number of the layer whose scores rank.

        Returns:
            ``[B, L']`` columns of the current hidden states to keep, left-padded with copies of each row's last column; None if nothing is
            dropped.
        """
        assert self.scores is not None
        if all(count >= columns.image.shape[1] for count, columns in zip(keep, self.columns, strict=True)):
            return None
        device = self.scores[0].device
        lengths = [columns.length - max(0, columns.image.shape[1] - count) for count, columns in zip(keep, self.columns, strict=True)]
        length = max(lengths)
        total = sum(len(columns.rows) for columns in self.columns)
        survivors = torch.empty(total, length, dtype=torch.int64, device=device)
        self._starts = torch.empty(total, dtype=torch.int64, device=device)
        for number, (count, columns, new_length) in enumerate(zip(keep, self.columns, lengths, strict=True)):
            columns.to(device)
            scores = self.scores[number]
            if covers is not None:
                scores = lift(scores, covers[number].of(layer, columns.image_idx, core=False))
            b, held = columns.image.shape
            stays = torch.ones(b, columns.length, dtype=torch.bool, device=device)
            if columns.asks:
                scores = torch.cat([scores[:, :-1], torch.full_like(scores[:, -1:], torch.inf)], dim=1)
            chosen = best(scores, min(count, held))
            image = columns.image.gather(1, chosen)
            stays.scatter_(1, columns.image - columns.pad, False).scatter_(1, image - columns.pad, True)
            # a stable sort of the flags lists the kept columns in ascending order without waiting for the device
            old = torch.sort(~stays, dim=1, stable=True).indices[:, :new_length] + columns.pad
            pad = length - new_length
            place = torch.empty(b, self.length, dtype=torch.int64, device=device)
            place.scatter_(1, old, torch.arange(pad, length, device=device).expand(b, -1))
            columns.image, columns.image_idx = place.gather(1, image), columns.image_idx.gather(1, chosen)
            columns.window = place.gather(1, columns.window)
            columns.pad, columns.length = pad, new_length
            survivors.index_copy_(0, columns.row_idx, torch.cat([old[:, -1:].expand(b, pad), old], dim=1))
            self._starts.index_fill_(0, columns.row_idx, pad)
        before = self.survivors
        self.survivors = survivors if before is None else before.to(device).gather(1, survivors)
        self.length, self._mask, self._valid = length, None, None
        return survivors
