"""The page with models of every family: it opens on a folder, counts a picture's tokens, and says what the paper did not measure."""

from __future__ import annotations

import functools
import threading

import pytest
from conftest import free_port
from programs import Program, data_uri
from random_models import picture
from tiny_families import MODELS

import avl
from avl import trace
from avl.engine import scheduler
from avl.models.families import FAMILIES
from avl.models.prompt import Question
from avl.policies.presets import UNMEASURED
from avl.ui import page, starting
from avl.ui.progress import Progress
from avl.ui.settings import settings

ONE_EACH = {tiny.family: name for name, tiny in reversed(MODELS.items())}


def loaded(family: str, folder) -> tuple:
    """A saved model of a family with a chat template, as a folder gives it."""
    tiny = MODELS[ONE_EACH[family]]
    processor = tiny.processor()
    placeholder = f"{{{{ '{tiny.placeholder} ' }}}}"
    processor.chat_template = (
        "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}" + placeholder + "{% else %}"
        "{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}ASSISTANT:"
    )
    tiny.model().save_pretrained(folder)
    processor.save_pretrained(folder)
    return avl.load(folder, device="cpu") if family != "paligemma" else (tiny.model(), processor)  # its tiny processor is a subclass


@pytest.mark.parametrize("family", ONE_EACH)
def test_the_page_opens_with_every_family(family, tmp_path):
    """As ``serve`` warms it up; what it counts for a picture is what the run has."""
    model, processor = loaded(family, tmp_path)
    run = functools.partial(scheduler.run, model, processor)
    about = starting._about(model, processor, str(tmp_path))
    starting._warm_up(run, str(tmp_path), Progress("any"), threading.Event())
    assert (UNMEASURED in about.notes) == (FAMILIES[family].preset is None)
    assert about.preset == (FAMILIES[family].preset or "llava-1.5-13b")
    assert settings(about)["arms"][1]["S"] == 45
    size = (60, 40)
    counted = about.prompt([size], "what is on the sign ?")
    start = next(avl.stream(model, processor, picture(3, *size), Question("what is on the sign ?"), avl.Full(), 2))
    assert isinstance(start, trace.Start)
    assert (counted.n_image, counted.n_text) == (start.n_image, start.n_text)


def test_a_folder_of_qwen3_vl_answers_programs(tmp_path):
    model, processor = loaded("qwen3_vl", tmp_path)
    run = functools.partial(scheduler.run, model, processor)
    built = page.build(run, starting._about(model, processor, str(tmp_path)))
    port = free_port()
    built.launch(server_port=port, prevent_thread_lock=True, quiet=True)
    try:
        arms = [{"policy": "Full"}, {"policy": "AVL", "S": 45, "C": 30, "K": 3, "P": 90, "T": 60}]
        answer = Program(f"http://127.0.0.1:{port}/").call([{"url": data_uri(64, 48)}, "what is on the sign ?", arms, 6])
        assert answer.error is None
        events = answer.value["trace"]["events"]
        assert events[0]["model"]["class"] == "Qwen3VLForConditionalGeneration"
        assert events[0]["grids"] == [{"image": 0, "first": 0, "rows": 5, "cols": 6, "newline": False, "box": [0.0, 0.0, 64.0, 48.0]}]
        assert sum(event["kind"] == "step" for event in events) == 2 * 5
    finally:
        built.transport.close()
        built.blocks.close(verbose=False)
