"""lmms-eval as a library: whether it is here, and its tasks with their data sets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import ImageFile

from avl.evaluation.paper.published import BENCHMARKS

VERSION = "0.7.3"

INSTALL = (
    'pip install "datasets>=4" evaluate "filelock<4" jinja2 loguru pydantic pytablewriter pytz pyyaml sacrebleu tenacity tqdm',
    f"pip install --no-deps lmms-eval=={VERSION}",
    "pip install --no-deps pycocoevalcap pycocotools",
)
"""What installs the evaluator beside torch and transformers; the last line, and java, are for captions alone.

With its own dependencies lmms-eval would replace torch, and bring torchvision. filelock 4 has no ``_api``, which its command imports."""

FOLDERS = {"docvqa_val": "docvqa", "textvqa_val": "textvqa", "ocrbench": "ocrbench", "nocaps_val": "nocaps", "flickr30k_test": "flickr30k"}
"""Where lmms-eval keeps the paper's tasks: all of its 1,700 take seconds to read."""


def require_evaluator() -> None:
    """Raise OSError with the lines that install it where lmms-eval is not installed: asked before a model is loaded."""
    try:
        version("lmms_eval")
    except PackageNotFoundError:
        raise OSError("\n  ".join(["the paper's tables need lmms-eval, which is not installed: run", *INSTALL])) from None


def _quiet() -> None:
    """Keep lmms-eval's log to errors: its warnings are about its own task files."""
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="ERROR", format="{message}")


def check_names(names: Sequence[str], include: Path | None = None) -> None:
    """Raise ValueError unless lmms-eval, or a folder of task files, has every one of these tasks."""
    manager = _manager(names, include)
    unknown = [name for name in names if name not in manager.all_subtasks]
    if unknown:
        there = "" if include is None else f" or {include}"
        raise ValueError(f"there is no task {', '.join(unknown)} in lmms-eval{there}; the paper's are {', '.join(BENCHMARKS)}")


def load_task(name: str, include: Path | None = None) -> Any:
    """Return one of lmms-eval's tasks with its data set.

    Args:
        name: of the task.
        include: a folder with further task files.

    Raises:
        ValueError: there is no such task, it is none of answers in words, or its data set is empty.
        OSError: its data set cannot be had, or a package is missing; says what to do.
    """
    check_names([name], include)
    try:
        task = _manager([name], include).load_task_or_group(name, task_type="chat")[name]
    except Exception as error:
        raise _unavailable(name, error) from error
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # lmms-eval has it on: half a picture would be asked about as if it were whole
    if task.OUTPUT_TYPE != "generate_until":
        raise ValueError(f"{name} is no task of answers in words ({task.OUTPUT_TYPE}), which is what policies answer")
    return task


def _manager(names: Sequence[str], include: Path | None) -> Any:
    import lmms_eval.tasks

    _quiet()
    here = Path(lmms_eval.tasks.__file__).parent
    paths = [] if include is None else [str(include)]
    folders = [*paths, *(str(here / one) for one in FOLDERS.values())]
    try:
        near = lmms_eval.tasks.TaskManager("WARNING", include_path=folders, include_defaults=False)
        if all(name in near.all_subtasks for name in names):
            return near
        return lmms_eval.tasks.TaskManager("WARNING", include_path=paths, include_defaults=True)
    except Exception as error:  # a task file is a program too
        raise ValueError(f"{include or here} holds a task file that cannot be read ({' '.join(str(error).split())[:300]})") from error


def cause(error: BaseException) -> BaseException:
    """Return what went wrong below tenacity's retries."""
    attempt = getattr(error, "last_attempt", None)
    return error if attempt is None else attempt.exception() or error


def _unavailable(name: str, error: Exception) -> OSError:
    found = cause(error)
    first = (str(found).strip().splitlines() or [type(found).__name__])[0]
    if isinstance(found, ModuleNotFoundError):
        return OSError(f"{name} needs {found.name}, which is not installed: {INSTALL[-1] if 'coco' in str(found.name) else INSTALL[0]}")
    if isinstance(found, FileNotFoundError) and "hub" not in type(found).__module__ and "datasets.exceptions" not in type(found).__module__:
        return OSError(f"{name} has no data here: {first}")
    return OSError(
        f"the data set of {name} cannot be had ({type(found).__name__}: {first[:200]}): log in with `hf auth login` or set HF_TOKEN, which "
        "lmms-eval asks for even where data are public; accept its terms on its page of the Hub where it has any; or check the network"
    )
