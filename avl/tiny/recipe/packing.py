"""Batches and forward pass of stage 2: one picture with many questions in one sequence.

A sequence holds the start of the prompt, the picture's tokens, and then questions with their answers. Each question sees the start, the
picture and itself, but no other question, and its positions begin right after the picture. So the loss equals that of one sequence per
question, at a fraction of the cost. A random part of the image tokens is left out of the sequence; the others keep their positions. None of
this depends on the policies that later evict tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from avl.tiny.data import drawing
from avl.tiny.data.questions import questions
from avl.tiny.data.scenes import COLORS, GRID, Item, Question, Scene
from avl.tiny.recipe import topics
from avl.tiny.recipe.model import IMAGE_TOKENS
from avl.tiny.recipe.tokenizer import prompt
from avl.tiny.recipe.vision import GIVEN, Painter, give, labels, stack

BLOCK_LIMIT = 288  # text tokens of one picture's questions
RECALL = 24  # the last tokens before a query, which are never forgotten
# kind -> probability of being asked; lower for kinds that are frequent in a scene, long, or learned early
RARE = {"count": 0.6, "exist": 0.6, "at": 0.8, "describe": 0.7, "caption": 0.6, "sign": 0.5, "price": 0.5}
WHOLE = ("describe", "caption")  # kinds that ask about the whole scene
UNNAMED, NAMELESS = 0.4, 0.5  # fraction of pictures with objects in unnamed colors; fraction of such objects in these
MISREAD = 0.15  # fraction of the color words in answers that are replaced as inputs


@dataclass
class Packed:
    """Tensors of one batch.

    Attributes:
        patches: uint8 [batch, given, 588], the patches given of each picture.
        places: int64 [batch, given], their places on the grid.
        owner: int64 [batch, given], the item that each of them shows, -1 for the background.
        marks: labels of the patches, see vision.py; head -> int64 [batch, given, labels].
        ids: int64 [batch, text], the questions and answers one after another, padded.
        block: int64 [batch, text], the question that a token belongs to, -1 for padding.
        place: int64 [batch, text], the token's RoPE position.
        target: int64 [batch, text], the token to predict, -100 where there is no loss.
        topics: labels of the tokens, see topics.py; head -> int64 [batch, text, labels].
    """

    patches: torch.Tensor
    places: torch.Tensor
    owner: torch.Tensor
    marks: dict[str, torch.Tensor]
    ids: torch.Tensor
    block: torch.Tensor
    place: torch.Tensor
    target: torch.Tensor
    topics: dict[str, torch.Tensor]


class Packer:
    """Turns scenes into packed rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        before = tokenizer(prompt(""))["input_ids"]
        image = tokenizer.convert_tokens_to_ids("<image>")
        self.prefix: list[int] = before[: before.index(image)]
        self.colors = np.array([tokenizer.convert_tokens_to_ids(f"Ġ{color}") for color in COLORS])

    def block(self, question: str, answer: str) -> tuple[list[int], int]:
        """Return the token ids after the image tokens, including the end of the answer, and how many of them are the question."""
        whole = prompt(question).split("<image>")[1]
        asked = self.tokenizer(whole, add_special_tokens=False)["input_ids"]
        told = self.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
        return [*asked, *told, self.tokenizer.eos_token_id], len(asked)

    def row(
        self, asked: Sequence[Question], background: str, items: Sequence[Item], limit: int = BLOCK_LIMIT
    ) -> tuple[tuple[np.ndarray, ...], dict[str, np.ndarray]]:
        """Pack as many questions as fit into one row.

        Args:
            asked: the questions, in order.
            background: of the scene.
            items: of the scene.
            limit: text tokens of the row.

        Returns:
            (ids, block, place, target), each int64 [limit], and topics, head -> int64 [limit, labels].
        """
        ids, block, place, target = (np.full(limit, fill, np.int64) for fill in (self.tokenizer.pad_token_id, -1, 0, -100))
        about = topics.blank(limit)
        used = 0
        for index, question in enumerate(asked):
            tokens, length = self.block(question.text, question.answer)
            end = used + len(tokens)
            if end > limit:
                continue
            ids[used:end] = tokens
            block[used:end] = index
            place[used:end] = len(self.prefix) + IMAGE_TOKENS + np.arange(len(tokens))
            # the last token of the question predicts the first of the answer, and so on
            target[used + length - 1 : end - 1] = tokens[length:]
            words = [word.lstrip("Ġ").lower() for word in self.tokenizer.convert_ids_to_tokens(tokens)]
            for name, told in topics.topics(words, length, background, items, question.kind in WHOLE).items():
                about[name][used:end] = told
            used = end
        return (ids, block, place, target), about


class Lessons(torch.utils.data.IterableDataset):
    """Endless packed batches of training scenes. A batch of whole pictures holds a third as many.

    Args:
        packer: packs the rows.
        batch: pictures per batch.
        whole: fraction of batches with all patches of their pictures; a tensor in shared memory, so that the trainer can raise it.
        start: part of the random seed, the step at which training resumes.
        seed: the other part.
    """

    def __init__(self, packer: Packer, batch: int, whole: torch.Tensor, start: int = 0, seed: int = 2) -> None:
        super().__init__()
        self.packer, self.batch, self.whole, self.start, self.seed = packer, batch, whole, start, seed

    def __iter__(self) -> Iterator[Packed]:
        torch.set_num_threads(1)
        rng = np.random.default_rng([self.seed, self.start])
        paint = Painter(rng)
        while True:
            if rng.random() < float(self.whole):
                yield self.make(rng, paint, max(1, self.batch // 3), IMAGE_TOKENS)
            else:
                yield self.make(rng, paint, self.batch, GIVEN)

    def make(self, rng: np.random.Generator, paint: Painter, batch: int, given: int) -> Packed:
        """Return one batch of `batch` pictures, each with `given` patches."""
        parts, owners, rows, about = [], [], [], []
        for _ in range(batch):
            unnamed = rng.random() < UNNAMED
            scene = paint(unnamed=NAMELESS if unnamed else 0.0)
            asked = colorless(scene, rng) if unnamed else questions(scene, rng)
            asked = [q for q in asked if rng.random() < RARE.get(q.kind, 1.0)]
            first = [q for q in asked if q.kind in ("describe", "caption", "sign", "price")]
            rest = [q for q in asked if q not in first]
            order = [*first, *(rest[i] for i in rng.permutation(len(rest)))]
            parts.append(give(rng, scene, labels(scene.items, scene.background), given))
            owners.append(drawing.owners(scene.items).reshape(-1)[parts[-1].places])
            row, told = self.packer.row(order, scene.background, scene.items)
            words, goal = row[0], row[3]
            read = misread(rng, words, goal, self.packer.colors)
            if unnamed:  # some color words are made up here, so none is learned
                goal = np.where(np.isin(goal, self.packer.colors), -100, goal)
            rows.append((read, row[1], row[2], goal))
            about.append(told)
        ids, block, place, target = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
        merged = {name: torch.from_numpy(np.stack([told[name] for told in about])) for name in topics.HEADS}
        patches, places, marks = stack(parts)
        return Packed(patches, places, torch.from_numpy(np.stack(owners)).long(), marks, ids, block, place, target, merged)


def colorless(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Return the questions of a scene whose answers do not depend on colors; unnamed colors get random names, which are not learned.

    This teaches the model shapes independently of their colors, and of the color words before them.
    """
    named = [name for name in COLORS if name[0] not in "aeiou"]  # all take the article "a", which then reveals nothing
    items = tuple(replace(item, color=str(rng.choice(named))) if item.tint else item for item in scene.items)
    asked = questions(replace(scene, items=items), rng)
    return [q for q in asked if q.kind != "colour" and not set(q.text.lower().split()) & set(COLORS)]


def misread(rng: np.random.Generator, ids: np.ndarray, target: np.ndarray, colors: np.ndarray, share: float = MISREAD) -> np.ndarray:
    """Replace some color words of the answers by random ones as inputs, and return the new ids; targets stay.

    The next word then has to come from the picture, not from the word before. Otherwise an object in a color that was never seen with its
    shape would get the name of another shape.

    Args:
        rng: random generator.
        ids: int64 [text], see `Packed`.
        target: int64 [text], see `Packed`.
        colors: token ids of the color words.
        share: fraction of the words to replace.
    """
    said = np.zeros(len(ids), bool)
    said[1:] = target[:-1] == ids[1:]  # a token belongs to an answer if the token before it has it as its target
    wrong = said & np.isin(ids, colors) & (rng.random(len(ids)) < share)
    return np.where(wrong, rng.choice(colors, len(ids)), ids)


def choose(generator: torch.Generator, rows: int, among: int, keep: int) -> torch.Tensor:
    """Return, for each row, a random choice of `keep` out of `among`, ascending: int64 [rows, keep]."""
    return torch.rand(rows, among, generator=generator).argsort(-1)[:, :keep].sort().values


def hidden_places(generator: torch.Generator, layers: int, places: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Choose image tokens to hide from the questions, anew for each layer: those of some items, random ones, or those in a rectangle.

    Args:
        generator: random generator.
        layers: number of layers.
        places: int64 [batch, kept], the tokens' places on the grid, see `Packed`.
        owner: int64 [batch, kept], the items that they show, see `Packed`.

    Returns:
        bool [layers, batch, kept].
    """
    shape = (layers, len(places), 1)
    scattered = torch.rand(layers, *places.shape, generator=generator) < 0.7 * torch.rand((), generator=generator)
    row, column = places // GRID, places % GRID
    sides = GRID * (0.3 + 0.5 * torch.rand(2, *shape, generator=generator))
    low = torch.rand(2, *shape, generator=generator) * (GRID + sides) - sides
    inside = (row >= low[0]) & (row < low[0] + sides[0]) & (column >= low[1]) & (column < low[1] + sides[1])
    share = 0.3 + 0.55 * torch.rand(len(places), 1, generator=generator)
    gone = torch.rand(layers, len(places), 1 + int(owner.max()) + 1, generator=generator) < share  # the last is the background
    gone[..., -1] = False
    things = gone.gather(2, torch.where(owner < 0, gone.shape[2] - 1, owner).expand(layers, -1, -1))
    way = torch.rand(shape, generator=generator)
    return torch.where(way < 0.1, inside, torch.where(way < 0.3, scattered, things))


def hidden_in_run(generator: torch.Generator, layers: int, run: range, places: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Choose image tokens to hide in consecutive layers, the same in each: the whole picture, or a part as in `hidden_places`.

    The other layers must then suffice, so that no information depends on a single layer.

    Args:
        generator: random generator.
        layers: number of layers.
        run: the layers to hide them in.
        places: int64 [batch, kept], see `hidden_places`.
        owner: int64 [batch, kept], see `hidden_places`.

    Returns:
        bool [layers, batch, kept].
    """
    if torch.rand((), generator=generator) < 0.4:
        hidden = torch.ones(1, *places.shape, dtype=torch.bool)
    else:
        hidden = hidden_places(generator, 1, places, owner)
    among = torch.zeros(layers, dtype=torch.bool)
    among[run.start : run.stop] = True
    return hidden & among[:, None, None]


def visible(block: torch.Tensor, before: int) -> torch.Tensor:
    """Return the attention mask, bool [batch, before + text, before + text]: True where a query (row) sees a key.

    Args:
        block: int64 [batch, text], see `Packed`.
        before: number of tokens before the questions (start of the prompt and picture), which see one another causally.
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
    by_question: bool = False,
    answers: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, dict[int, torch.Tensor]]:
    """Compute the loss of one batch.

    Args:
        llava: the model, of which the projector and the language model are used.
        packer: has the start of the prompt.
        features: [batch, kept, width], the vision tower's output for the image tokens that are kept.
        kept: int64 [batch, kept], which of the 576 image tokens these are.
        packed: the questions.
        hide: optional bool [layers, batch, kept], image tokens that the questions do not see in a layer.
        forget: optional bool [batch, text], text tokens that queries more than RECALL tokens later do not see.
        by_question: weight each token by the inverse square root of its answer's length, or descriptions would outweigh short answers.
        answers: if above 0, `hide` applies to this fraction of the answers' tokens only; all other tokens see everything.

    Returns:
        The mean loss over answer tokens; for each of them, whether the right token was the likeliest (bool, flat); and the text's hidden
        states after each of `topics.LAYERS`, layer -> [batch, text, width].
    """
    model = llava.model
    text = model.language_model
    image = model.multi_modal_projector(features)
    batch = len(image)
    prefix = torch.tensor(packer.prefix, device=image.device)
    start = text.embed_tokens(prefix).expand(batch, -1, -1)
    hidden = torch.cat([start, image, text.embed_tokens(packed.ids)], 1)
    ahead = torch.cat([torch.arange(len(prefix), device=image.device).expand(batch, -1), len(prefix) + kept], 1)
    places = torch.cat([ahead, packed.place], 1)
    cos, sin = text.rotary_emb(hidden, places)
    cos, sin = cos[:, None], sin[:, None]
    before = ahead.shape[1]
    mask = visible(packed.block, before)
    if forget is not None:
        late = packed.place[:, :, None] - packed.place[:, None, :] > RECALL
        mask[:, before:, before:] &= ~(late & forget[:, None, :])
    bias = torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device).masked_fill_(~mask, -1e4)
    learned = packed.target >= 0
    blind = packed.block >= 0
    if answers:  # without the first token that has a target: it is the question's last
        blind = torch.zeros_like(learned)
        blind[:, 1:] = learned[:, 1:] & learned[:, :-1]
        blind &= torch.rand(blind.shape, device=blind.device) < answers
    told = {}
    for index, layer in enumerate(text.layers):
        own = bias
        if hide is not None:
            own = bias.clone()
            own[:, before:, len(prefix) : before].masked_fill_(hide[index][:, None] & blind[..., None], -1e4)
        hidden = decoder_layer(layer, hidden, cos, sin, own, before)
        if index + 1 in topics.LAYERS:
            told[index + 1] = hidden[:, before:]
    logits = llava.lm_head(text.norm(hidden[:, before:][learned])).float()
    target = packed.target[learned]
    right = logits.argmax(-1) == target
    if not by_question:
        return F.cross_entropy(logits, target), right, told
    lengths = torch.zeros(batch, int(packed.block.max()) + 1, device=logits.device)
    lengths.scatter_add_(1, packed.block.clamp(min=0), learned.float())
    weight = lengths.gather(1, packed.block.clamp(min=0))[learned].rsqrt()
    return (weight * F.cross_entropy(logits, target, reduction="none")).sum() / weight.sum(), right, told


def decoder_layer(layer: Any, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, bias: torch.Tensor, before: int) -> torch.Tensor:
    """Run one Llama layer, without the attention of the first `before` tokens on the questions, which they never see."""
    heads = layer.self_attn
    normed = layer.input_layernorm(hidden)
    shape = (*normed.shape[:2], -1, heads.head_dim)
    q, k, v = (p(normed).view(shape).transpose(1, 2) for p in (heads.q_proj, heads.k_proj, heads.v_proj))
    q, k = q * cos + _turned(q) * sin, k * cos + _turned(k) * sin
    out = []
    for rows, columns in ((slice(0, before), before), (slice(before, None), hidden.shape[1])):
        own = bias[:, None, rows, :columns]
        if q.dtype == torch.bfloat16:  # plain products train faster on a CPU than the fused attention
            scores = (q[:, :, rows] * heads.scaling) @ k[:, :, :columns].transpose(-1, -2) + own
            out.append(scores.softmax(-1, dtype=scores.dtype) @ v[:, :, :columns])
        else:
            out.append(F.scaled_dot_product_attention(q[:, :, rows], k[:, :, :columns], v[:, :, :columns], own, scale=heads.scaling))
    hidden = hidden + heads.o_proj(torch.cat(out, 2).transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _turned(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)
