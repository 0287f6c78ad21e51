"""Tokenizer and processor of the bundled model, saved and loaded like those of any checkpoint."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from avl.tiny.data.scenes import CANVAS, PATCH, draw

PAD, BOS, EOS, IMAGE = "<pad>", "<s>", "</s>", "<image>"
ROLES = ("USER:", "ASSISTANT:")  # single tokens, to keep prompts short

# As LLaVA-1.5: "USER: <image>\nquestion ASSISTANT:". Content is a string or a list of {"type": "image"} and {"type": "text", "text": ...}.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set before = '' %}{% set after = ' ' %}"
    "{% elif message['role'] == 'user' %}{% set before = 'USER: ' %}{% set after = ' ' %}"
    "{% else %}{% set before = 'ASSISTANT: ' %}{% set after = '</s>' %}{% endif %}"
    "{{ before }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}"
    "{{ after }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def prompt(question: str) -> str:
    """Return a question about one picture as the chat template formats it."""
    return f"USER: {IMAGE}\n{question} ASSISTANT:"


def corpus(scenes: int = 400) -> Iterable[str]:
    """Yield questions and answers of training scenes, from which the vocabulary is built."""
    for seed in range(scenes):
        for q in draw(seed, "train").questions:
            yield f"{q.text} {q.answer}"
            yield f"{q.text[0].lower()}{q.text[1:]}"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: common words are single tokens, capitals and digits always stand alone, and it encodes any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[A-Z0-9]"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,  # an upper bound that the corpus does not reach
        min_frequency=3,
        special_tokens=[PAD, BOS, EOS, IMAGE],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens([AddedToken(role, normalized=False, special=False) for role in ROLES])
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)])
    return wrapped(tokenizer)


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap the tokenizer for transformers, with its special tokens and left padding."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=2048,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Return LLaVA's processor with CLIP's image preprocessing and the tokenizer; `<image>` becomes 576 image tokens."""
    images = CLIPImageProcessorPil(size={"shortest_edge": CANVAS}, crop_size={"height": CANVAS, "width": CANVAS})
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )
