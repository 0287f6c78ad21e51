"""Choice of the next token."""

from __future__ import annotations

import torch


def next_tokens(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> torch.Tensor:
    """Return a token per row ``[B]`` from logits ``[B, V]``: the likeliest at temperature 0, else one sampled from the top-p nucleus."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    # on the CPU in float64, so that a seed gives the same answer on every device
    probabilities = (logits.double().cpu() / temperature).softmax(dim=-1)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    ordered = ordered.masked_fill(ordered.cumsum(dim=-1) - ordered >= top_p, 0.0)
    drawn = torch.multinomial(ordered, 1, generator=generator)
    return order.gather(-1, drawn).squeeze(-1).to(logits.device)
