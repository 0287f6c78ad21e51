"""Stage 2's batches and its forward pass: one picture, many questions, in one sequence.

A sequence is: the start of the prompt, the picture's tokens, then questions with their answers one after another. Each question sees
the start, the picture and itself, never the other questions, and its positions begin right behind the picture: the loss is what it would
be with a sequence for each question, at a fraction of the cost. Of the image tokens a random share is left out of the sequence; those that
stay keep their positions. This knows nothing of any policy that later evicts tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from . import scenes
from .model import IMAGE_TOKENS
from .questions import questions
from .tokenizer import prompt
from .vision import labels, pixels

BLOCK_LIMIT = 288  # text tokens of one picture's questions
RECALL = 24  # tokens back; what is newer is never forgotten
RARE = {"count": 0.6, "exist": 0.5, "shape": 0.7}  # kinds with many questions in a scene are asked less often each


@dataclass
class Packed:
    """Tensors of one batch.

    images: float32 [batch, 3, 336, 336].
    marks: what each patch should say, as in vision.py; head -> int64 [batch, 576, labels].
    ids: int64 [batch, text], the questions and answers behind one another, padded.
    block: int64 [batch, text], which question a token belongs to; -1 for padding.
    place: int64 [batch, text], the position that RoPE gets.
    target: int64 [batch, text], the token to predict; -100 where nothing is to be learned.
    """

    images: torch.Tensor
    marks: dict[str, torch.Tensor]
    ids: torch.Tensor
    block: torch.Tensor
    place: torch.Tensor
    target: torch.Tensor


class Packer:
    """Turns scenes into packed rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        before = tokenizer(prompt(""))["input_ids"]
        image = tokenizer.convert_tokens_to_ids("<image>")
        self.prefix: list[int] = before[: before.index(image)]

    def block(self, question: str, answer: str) -> tuple[list[int], int]:
        """Token ids of what follows the image tokens, end of answer included, and how many of them are the question."""
        whole = prompt(question).split("<image>")[1]
        asked = self.tokenizer(whole, add_special_tokens=False)["input_ids"]
        told = self.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
        return [*asked, *told, self.tokenizer.eos_token_id], len(asked)

    def row(self, blocks: list[tuple[list[int], int]], limit: int = BLOCK_LIMIT) -> tuple[np.ndarray, ...]:
        """Pack as many blocks as fit: ids, block, place, target, each int64 [limit]."""
        ids, block, place, target = (np.full(limit, fill, np.int64) for fill in (self.tokenizer.pad_token_id, -1, 0, -100))
        used = 0
        for index, (tokens, asked) in enumerate(blocks):
            end = used + len(tokens)
            if end > limit:
                continue
            ids[used:end] = tokens
            block[used:end] = index
            place[used:end] = len(self.prefix) + IMAGE_TOKENS + np.arange(len(tokens))
            # The last token of the question predicts the first of the answer, and so on.
            target[used + asked - 1 : end - 1] = tokens[asked:]
            used = end
        return ids, block, place, target


class Lessons(torch.utils.data.IterableDataset):
    """Endless packed batches of training scenes. Batch number n is the same whatever came before."""

    def __init__(self, packer: Packer, batch: int, start: int = 0, seed: int = 2) -> None:
        super().__init__()
        self.packer, self.batch, self.start, self.seed = packer, batch, start, seed

    def __iter__(self) -> Iterator[Packed]:
        info = torch.utils.data.get_worker_info()
        step, stride = (self.start, 1) if info is None else (self.start + info.id, info.num_workers)
        torch.set_num_threads(1)
        while True:
            rng = np.random.default_rng([self.seed, step])
            yield self.make(rng)
            step += stride

    def make(self, rng: np.random.Generator) -> Packed:
        """One batch."""
        images, rows, marks = [], [], []
        for _ in range(self.batch):
            items = scenes.lay_out(rng, "train", text=(0.65, 0.5), invented=0.5)
            background = str(rng.choice(scenes.BACKGROUNDS))
            scene = scenes.Scene(scenes.render(items, background, rng), background, tuple(items), split="train")
            asked = questions(scene, rng)
            first = [q for q in asked if q.kind in ("describe", "caption", "sign", "price")]
            rest = [q for q in asked if q not in first and rng.random() < RARE.get(q.kind, 1.0)]
            order = [*first, *(rest[i] for i in rng.permutation(len(rest)))]
            images.append(pixels(scene.image))
            marks.append(labels(items, background, (0, 0, scenes.CANVAS, scenes.CANVAS)))
            rows.append(self.packer.row([self.packer.block(q.text, q.answer) for q in order]))
        ids, block, place, target = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
        said = {name: torch.from_numpy(np.stack([m[name] for m in marks])) for name in marks[0]}
        return Packed(torch.from_numpy(np.stack(images)), said, ids, block, place, target)


def choose(generator: torch.Generator, keep: int) -> torch.Tensor:
    """A random choice of `keep` image tokens, in order: int64 [keep]."""
    return torch.randperm(IMAGE_TOKENS, generator=generator)[:keep].sort().values


def visible(block: torch.Tensor, before: int) -> torch.Tensor:
    """Which token may look at which: bool [batch, before + text, before + text].

    Args:
        block: int64 [batch, text], as in `Packed`.
        before: tokens in front of the questions (start of the prompt and picture), which are causal among themselves.
    """
    batch, text = block.shape
    total = before + text
    mask = torch.ones(total, total, dtype=torch.bool).tril().expand(batch, -1, -1).clone()
    same = block[:, :, None] == block[:, None, :]
    mask[:, before:, before:] &= same
    return mask


def language_loss(
    llava: Any,
    packer: Packer,
    features: torch.Tensor,
    kept: torch.Tensor,
    packed: Packed,
    hide: torch.Tensor | None = None,
    forget: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of one batch, by the model's own weights.

    Args:
        llava: the model; its projector and language model are used.
        packer: for the start of the prompt.
        features: [batch, kept, width], the vision tower's output for the image tokens that stay.
        kept: int64 [kept], which image tokens those are.
        packed: the questions.
        hide: optional bool [layers, batch, kept]: image tokens that the questions do not see in a layer.
        forget: optional bool [batch, text]: text tokens that are no longer seen RECALL tokens later.

    Returns:
        The mean loss over answer tokens, and for each of them whether the right token was the likeliest (bool, flat).
    """
    model = llava.model
    text = model.language_model
    image = model.multi_modal_projector(features)
    batch = len(image)
    prefix = torch.tensor(packer.prefix, device=image.device)
    start = text.embed_tokens(prefix).expand(batch, -1, -1)
    hidden = torch.cat([start, image, text.embed_tokens(packed.ids)], 1)
    ahead = torch.cat([torch.arange(len(prefix), device=image.device), len(prefix) + kept])
    places = torch.cat([ahead.expand(batch, -1), packed.place], 1)
    cos, sin = text.rotary_emb(hidden, places)
    cos, sin = cos[:, None], sin[:, None]
    before = len(ahead)
    mask = visible(packed.block, before)
    if forget is not None:
        late = packed.place[:, :, None] - packed.place[:, None, :] > RECALL
        mask[:, before:, before:] &= ~(late & forget[:, None, :])
    bias = torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device).masked_fill_(~mask, -1e4)
    for index, layer in enumerate(text.layers):
        own = bias
        if hide is not None:
            own = bias.clone()
            own[:, before:, len(prefix) : before].masked_fill_(hide[index][:, None], -1e4)
        hidden = decoder_layer(layer, hidden, cos, sin, own, before)
    learned = packed.target >= 0
    logits = llava.lm_head(text.norm(hidden[:, before:][learned])).float()
    target = packed.target[learned]
    return F.cross_entropy(logits, target), logits.argmax(-1) == target


def decoder_layer(
    layer: Any, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, bias: torch.Tensor, before: int
) -> torch.Tensor:
    """One Llama layer with plain matrix products; the tokens in front never look at the questions, so that part is not computed."""
    heads = layer.self_attn
    normed = layer.input_layernorm(hidden)
    shape = (*normed.shape[:2], -1, heads.head_dim)
    q, k, v = (p(normed).view(shape).transpose(1, 2) for p in (heads.q_proj, heads.k_proj, heads.v_proj))
    q, k = q * cos + _turned(q) * sin, k * cos + _turned(k) * sin
    out = []
    for rows, columns in ((slice(0, before), before), (slice(before, None), hidden.shape[1])):
        scores = (q[:, :, rows] * heads.scaling) @ k[:, :, :columns].transpose(-1, -2) + bias[:, None, rows, :columns]
        out.append(scores.softmax(-1, dtype=scores.dtype) @ v[:, :, :columns])
    hidden = hidden + heads.o_proj(torch.cat(out, 2).transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _turned(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)
