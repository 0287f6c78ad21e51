"""Local data in the shape of the paper's five data sets, from the bundled model's held-out scenes; run as a script: paper_data.py FOLDER.

Task files include lmms-eval's own, with the data here instead, and without the sentences around questions: the bundled model answers "yes"
to "Answer the question using a single word or phrase." Needs the packages of lmms-eval (pyarrow, through datasets).
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = 6
TASKS = ("local_docvqa", "local_textvqa", "local_ocrbench", "local_nocaps", "local_flickr30k")

NO_WORDS = 'lmms_eval_specific_kwargs: {default: {pre_prompt: "", post_prompt: ""}}'
CAPTION = "Describe the picture in one sentence."
OWN = {
    "local_docvqa": ("docvqa/docvqa_val.yaml", "validation", NO_WORDS),
    "local_textvqa": ("textvqa/textvqa_val.yaml", "validation", NO_WORDS),
    "local_ocrbench": ("ocrbench/ocrbench.yaml", "test", NO_WORDS),
    "local_nocaps": ("nocaps/nocaps_val.yaml", "validation", f'lmms_eval_specific_kwargs: {{default: {{prompt: "{CAPTION}"}}}}'),
    "local_flickr30k": ("flickr30k/flickr30k_test.yaml", "test", f'doc_to_text: "{CAPTION}"'),
}
"""Task -> lmms-eval's file, its split, and what is said otherwise."""


def documents() -> dict[str, list[dict[str, Any]]]:
    """Task -> its documents."""
    from avl.evaluation.tasks import held_out

    asked = held_out(400)
    qa, read = ([one for one in asked if one.question.task == task][:DOCUMENTS] for task in ("qa", "read"))
    told = [one for one in asked if one.question.kind == "caption"][: 2 * DOCUMENTS]
    return {
        "local_docvqa": [{"questionId": str(n), "docId": n, **_asked(one), "answers": [one.question.answer]} for n, one in enumerate(read)],
        "local_textvqa": [
            {"image_id": f"{n:016x}", "question_id": n, **_asked(one), "answers": [one.question.answer] * 10, "ocr_tokens": []}
            for n, one in enumerate(qa)
        ],
        "local_ocrbench": [
            {"dataset": "IIIT5K", "question_type": "Regular Text Recognition", **_asked(one), "answer": [one.question.answer]}
            for one in read
        ],
        "local_nocaps": [
            {"image": one.image, "image_id": n, "annotations_captions": captions(one.question.answer, 10)}
            for n, one in enumerate(told[:DOCUMENTS])
        ],
        "local_flickr30k": [
            {"image": one.image, "img_id": str(n), "caption": captions(one.question.answer, 5)} for n, one in enumerate(told[DOCUMENTS:])
        ],
    }


def _asked(sample: Any) -> dict[str, Any]:
    return {"question": sample.question.text, "image": sample.image}


def captions(right: str, several: int) -> list[str]:
    """The right caption in several people's words."""
    plain = right.rstrip(".").lower()
    said = [right, f"There is {plain}.", f"A picture of {plain}.", f"{right.rstrip('.')}, drawn.", f"I see {plain}."]
    return [said[n % len(said)] for n in range(several)]


def write(folder: Path) -> None:
    """Write the five data sets and their task files."""
    import lmms_eval.tasks
    from datasets import Dataset, Features, Image, List, Value

    folder.mkdir(parents=True, exist_ok=True)
    builtin = Path(lmms_eval.tasks.__file__).parent
    for task, several in documents().items():
        encoded = [
            {key: {"bytes": _png(value), "path": None} if key == "image" else value for key, value in one.items()} for one in several
        ]
        kinds = {
            key: Image() if key == "image" else List(Value("int64" if value and isinstance(value[0], int) else "string"))
            if isinstance(value, list) else Value("int64" if isinstance(value, int) else "string")
            for key, value in encoded[0].items()
        }  # fmt: skip
        Dataset.from_list(encoded, features=Features(kinds)).to_parquet(str(folder / f"{task}.parquet"))
        own, split, otherwise = OWN[task]
        text = f"include: {builtin / own}\ntask: {task}\ndataset_path: parquet\ndataset_name: null\n"
        text += f"dataset_kwargs: {{data_files: {{{split}: {folder.resolve() / task}.parquet}}}}\n{otherwise}\n"
        (folder / f"{task}.yaml").write_text(text, encoding="utf-8")


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    write(Path(sys.argv[1]))
