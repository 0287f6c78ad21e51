"""What needs lmms-eval's interpreter and one process only; run as a script, prints one JSON line: paper_probe.py FOLDER ANSWERS CAPTIONS.

FOLDER holds the local tasks; ANSWERS is a file of a cell of local_nocaps, CAPTIONS whether CIDEr can be computed here.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def broken(model: Any, processor: Any, folder: Path) -> dict[str, str]:
    """What is said of a picture that is cut off, after two whole ones, and of a document that the task's own code cannot score."""
    import datasets

    from avl.evaluation.cells import Cells
    from avl.evaluation.paper.tasks import lmms_task
    from avl.policies import Full

    here = folder / "broken"
    here.mkdir()
    for number, name in enumerate(("local_docvqa", "local_ocrbench")):
        table = datasets.Dataset.from_parquet(str(folder / f"{name}.parquet")).cast_column("image", datasets.Image(decode=False))

        def spoil(one: dict[str, Any], place: int, number: int = number) -> dict[str, Any]:
            if place == 2 and number == 0:
                one["image"]["bytes"] = one["image"]["bytes"][:200]
            if place == 2 and number == 1:
                one["answer"] = None
            return one

        table.map(spoil, with_indices=True).cast_column("image", datasets.Image()).to_parquet(str(here / f"{name}.parquet"))
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8").replace(str(folder.resolve()), str(here.resolve()))
        (here / f"{name}.yaml").write_text(text.replace(f"task: {name}", f"task: broken_{name}"), encoding="utf-8")
    said = {}
    for name in ("broken_local_docvqa", "broken_local_ocrbench"):
        task, cells = lmms_task(name, model, processor, batch=1, include=here), Cells(None, {})
        try:
            if name.endswith("docvqa"):
                cells.fill(Full(), task, every=1)
            else:
                task.scores({1: "a", 2: "b"})
        except ValueError as error:
            said[name] = str(error)
        said[f"{name} answered"] = " ".join(map(str, cells.cell(Full(), task).answers))
    return said


def captions(folder: Path, answers: Path, model: Any, processor: Any) -> list[float]:
    """CIDEr of a cell's answers by this project's few lines, and by lmms-eval's own code."""
    from avl.evaluation.paper.tasks import data, lmms_task

    os.chdir(folder)  # lmms-eval's own code writes a submission where it runs
    own = data("local_nocaps", folder)
    told = {one["number"]: one["text"] for one in map(json.loads, answers.read_text(encoding="utf-8").splitlines()[1:])}
    ours = lmms_task("local_nocaps", model, processor, include=folder).scores(told)
    results = [own.process_results(own.eval_docs[number], [text])["nocaps_CIDEr"] for number, text in told.items()]
    theirs = own.aggregation()["nocaps_CIDEr"](results, None)
    return [sum(ours.values()) / len(ours), float(theirs)]


def main() -> None:
    """Print what was found."""
    from avl.attention.attachment import attach
    from avl.evaluation.paper.evaluator import load_task
    from avl.models.loading import load

    folder, answers = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    model, processor = load("tiny", device="cpu")
    attach(model)
    found: dict[str, Any] = broken(model, processor, folder)
    shutil.rmtree(folder / "broken")
    if sys.argv[3] == "captions":
        found["cider"] = captions(folder, answers, model, processor)
    (folder / "torn.yaml").write_text("include: nowhere.yaml\ntask: torn\n", encoding="utf-8")
    try:
        load_task("local_docvqa", folder)
    except ValueError as error:
        found["torn"] = str(error)
    (folder / "torn.yaml").unlink()
    try:
        load_task("docvqa_val")  # no token, no network
    except OSError as error:
        found["docvqa_val"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
