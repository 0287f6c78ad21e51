"""Stage 2's batches and its forward pass: one picture, many questions, in one sequence.

A sequence is: the start of the prompt, the picture's tokens, then questions with their answers one after another. Each question sees
the start, the picture and itself, never the other questions, and its positions begin right behind the picture: the loss is what it would
be with a sequence for each question, at a fraction of the cost. Of the image tokens a random share is left out of the sequence; those that
stay keep their positions. This knows nothing of any policy that later evicts tokens.
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
from avl.tiny.data.scenes import COLOURS, GRID, Item, Question, Scene
from avl.tiny.recipe import topics
from avl.tiny.recipe.model import IMAGE_TOKENS
from avl.tiny.recipe.tokenizer import prompt
from avl.tiny.recipe.vision import GIVEN, Painter, give, labels, stack

BLOCK_LIMIT = 288  # text tokens of one picture's questions
RECALL = 24  # tokens back; what is newer is never forgotten
# Kinds that are many in a scene, long, or learned early are asked less often
RARE = {"count": 0.6, "exist": 0.6, "at": 0.8, "describe": 0.7, "caption": 0.6, "sign": 0.5, "price": 0.5}
WHOLE = ("describe", "caption")  # kinds that ask for the whole scene
UNNAMED, NAMELESS = 0.4, 0.5  # share of pictures with objects in colours without a name; of the objects in them
MISREAD = 0.15  # share of the colour words in answers that are read back as others


@dataclass
class Packed:
    """Tensors of one batch.

    patches: uint8 [batch, given, 588], those of the picture that are given.
    places: int64 [batch, given], where they are on the grid.
    owner: int64 [batch, given], which thing each of them shows; -1 for the background.
    marks: what each of them should say, as in vision.py; head -> int64 [batch, given, labels].
    ids: int64 [batch, text], the questions and answers behind one another, padded.
    block: int64 [batch, text], which question a token belongs to; -1 for padding.
    place: int64 [batch, text], the position that RoPE gets.
    target: int64 [batch, text], the token to predict; -100 where nothing is to be learned.
    topics: what tokens are about, as in topics.py; head -> int64 [batch, text, labels].
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
        self.colours = np.array([tokenizer.convert_tokens_to_ids(f"Ġ{colour}") for colour in COLOURS])

    def block(self, question: str, answer: str) -> tuple[list[int], int]:
        """Token ids of what follows the image tokens, end of answer included, and how many of them are the question."""
        whole = prompt(question).split("<image>")[1]
        asked = self.tokenizer(whole, add_special_tokens=False)["input_ids"]
        told = self.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
        return [*asked, *told, self.tokenizer.eos_token_id], len(asked)

    def row(
        self, asked: Sequence[Question], background: str, items: Sequence[Item], limit: int = BLOCK_LIMIT
    ) -> tuple[tuple[np.ndarray, ...], dict[str, np.ndarray]]:
        """Pack as many questions as fit: (ids, block, place, target), each int64 [limit], and topics, head -> int64 [limit, labels]."""
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
            # The last token of the question predicts the first of the answer, and so on.
            target[used + length - 1 : end - 1] = tokens[length:]
            words = [word.lstrip("Ġ").lower() for word in self.tokenizer.convert_ids_to_tokens(tokens)]
            for name, told in topics.topics(words, length, background, items, question.kind in WHOLE).items():
                about[name][used:end] = told
            used = end
        return (ids, block, place, target), about


class Lessons(torch.utils.data.IterableDataset):
    """Endless packed batches of training scenes. `whole` batches give all patches of a third as many pictures.

    Args:
        packer: makes the rows.
        batch: pictures in a batch.
        whole: share of batches that give whole pictures; a tensor in shared memory, so that the trainer can raise it.
        start, seed: of the chance that draws; the same two give the same batches.
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
        """One batch."""
        parts, owners, rows, about = [], [], [], []
        for _ in range(batch):
            unnamed = rng.random() < UNNAMED
            scene = paint(unnamed=NAMELESS if unnamed else 0.0)
            asked = colourless(scene, rng) if unnamed else questions(scene, rng)
            asked = [q for q in asked if rng.random() < RARE.get(q.kind, 1.0)]
            first = [q for q in asked if q.kind in ("describe", "caption", "sign", "price")]
            rest = [q for q in asked if q not in first]
            order = [*first, *(rest[i] for i in rng.permutation(len(rest)))]
            parts.append(give(rng, scene, labels(scene.items, scene.background), given))
            owners.append(drawing.owners(scene.items).reshape(-1)[parts[-1].places])
            row, told = self.packer.row(order, scene.background, scene.items)
            words, goal = row[0], row[3]
            read = misread(rng, words, goal, self.packer.colours)
            if unnamed:  # no colour word is to be said where some are made up
                goal = np.where(np.isin(goal, self.packer.colours), -100, goal)
            rows.append((read, row[1], row[2], goal))
            about.append(told)
        ids, block, place, target = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
        merged = {name: torch.from_numpy(np.stack([told[name] for told in about])) for name in topics.HEADS}
        patches, places, marks = stack(parts)
        return Packed(patches, places, torch.from_numpy(np.stack(owners)).long(), marks, ids, block, place, target, merged)


def colourless(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """The questions of a scene that no colour decides. A colour without a name has a random one in the answers, which is not to be learned.

    So that the model learns shapes apart from the colours that they came in, and from the colour words before them.
    """
    named = [name for name in COLOURS if name[0] not in "aeiou"]  # an article says nothing of the colour either
    items = tuple(replace(item, colour=str(rng.choice(named))) if item.tint else item for item in scene.items)
    asked = questions(replace(scene, items=items), rng)
    return [q for q in asked if q.kind != "colour" and not set(q.text.lower().split()) & set(COLOURS)]


def misread(rng: np.random.Generator, ids: np.ndarray, target: np.ndarray, colours: np.ndarray, share: float = MISREAD) -> np.ndarray:
    """Replace some of the colour words that an answer reads back by random ones; what it has to say stays.

    The picture, not the word before, shall tell the next word: else an object whose colour was never seen on its shape gets the name of
    another shape.

    Args:
        rng: the source of chance.
        ids, target: int64 [text], as in `Packed`.
        colours: the token ids of the colour words.
        share: of the words that are replaced.
    """
    said = np.zeros(len(ids), bool)
    said[1:] = target[:-1] == ids[1:]  # a word of an answer is what the token before it had to predict
    wrong = said & np.isin(ids, colours) & (rng.random(len(ids)) < share)
    return np.where(wrong, rng.choice(colours, len(ids)), ids)


def choose(generator: torch.Generator, rows: int, among: int, keep: int) -> torch.Tensor:
    """For each row another random choice of `keep` of `among` things, in order: int64 [rows, keep]."""
    return torch.rand(rows, among, generator=generator).argsort(-1)[:, :keep].sort().values


def hidden_places(generator: torch.Generator, layers: int, places: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Image tokens that the questions shall not see, in each layer others: all of some things, random ones, or all in a rectangle.

    Args:
        generator: the source of chance.
        layers: how many layers there are.
        places, owner: int64 [batch, kept], where the tokens are on the grid and which thing they show, as in `Packed`.

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
    """Image tokens hidden in a run of layers, the same in all of them: the whole picture, or a part as in `hidden_places`.

    What the other layers see must do, so no layer is the only one that finds something.

    Args:
        generator, layers, places, owner: as in `hidden_places`.
        run: the layers.

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
    by_question: bool = False,
    answers: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, dict[int, torch.Tensor]]:
    """The loss of one batch, by the model's own weights.

    Args:
        llava: the model; its projector and language model are used.
        packer: for the start of the prompt.
        features: [batch, kept, width], the vision tower's output for the image tokens that stay.
        kept: int64 [batch, kept], which of the 576 image tokens those are.
        packed: the questions.
        hide: optional bool [layers, batch, kept]: image tokens that the questions do not see in a layer.
        forget: optional bool [batch, text]: text tokens that are no longer seen RECALL tokens later.
        answers: above 0, `hide` is for this share of the answers' tokens alone; the others, and the whole questions, see all.
        by_question: weigh a token by one over the root of its answer's length, or descriptions drown short answers.

    Returns:
        The mean loss over answer tokens; for each of them whether the right token was the likeliest (bool, flat); and the text's hidden
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
    if answers:  # the first token from which a word is learned is the question's last
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
    """One Llama layer; the tokens in front never look at the questions, so that part is not computed."""
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
