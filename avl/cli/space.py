"""``avl space``: the folder of a Hugging Face Space, for the hardware that it will have."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

from avl import _paths
from avl.models.checkpoints import CHECKPOINTS, close_to

Kind = Literal["cpu", "gpu", "zero"]

PACKAGE = Path(_paths.__file__).resolve().parent
ASSETS = ("fonts", "gallery", "loading", "player", "tiny", "traces")
DEVELOPMENT = (
    *("__pycache__", "*.pyc", "_kernels", "_assets", "draw.py", "train_log.jsonl"),
    *("node_modules", "package*.json", "tsconfig.json", "eslint.config.js", "globals.d.ts"),
)
"""What a wheel leaves out too."""

WHEELS = "https://download.pytorch.org/whl/"


@dataclass(frozen=True)
class Hardware:
    """What a kind of Space needs.

    Attributes:
        torch: lines of its requirements for torch. The wheels of PyPI are for CUDA 13, and drivers of paid GPUs are for 12; ZeroGPU takes
            a few releases.
        suggested: for those who duplicate the Space; None where it cannot be suggested.
        model: that it shows by default.
    """

    torch: tuple[str, ...]
    suggested: str | None
    model: str


HARDWARE: dict[Kind, Hardware] = {
    "cpu": Hardware((f"--extra-index-url {WHEELS}cpu", "torch==2.13.0+cpu"), "cpu-basic", "tiny"),
    "gpu": Hardware((f"--extra-index-url {WHEELS}cu128", "torch==2.11.0+cu128"), "l4x1", "llava-1.5-7b"),
    "zero": Hardware(("torch==2.11.0", "spaces>=0.51"), None, "llava-1.5-7b"),
}

APP = '''"""The page of this Space."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("AVL_MODEL", "{model}")  # the Space's settings may name another

from avl.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(only="page", program="app.py"))
'''

BODY = """
# A-VL × LLaVA

One vision-language model answers twice, side by side: with full attention, and with
[adaptive attention](https://arxiv.org/abs/2409.14846), which stores only the useful image tokens and reads only the most critical of them.
KV memory, latency and the core tokens of every layer are drawn while the tokens stream.

Made by `python -m avl space --hardware {kind}`. To show another model, set the variable `AVL_MODEL` in the Space's settings.
"""


def space(
    out: Annotated[Path, typer.Option(help="folder to write; new or empty")],
    hardware: Annotated[Kind, typer.Option(help="of the Space: cpu, gpu (a paid one) or zero (ZeroGPU)")] = "zero",
    model: Annotated[
        str | None, typer.Option(help="tiny, a short name or a Hub id; default: tiny on a CPU, else llava-1.5-7b", show_default=False)
    ] = None,
) -> None:
    """Write the folder of a Hugging Face Space, to upload with the command that is printed."""
    write(out, hardware, model or HARDWARE[hardware].model)
    print(f"hf upload USER/SPACE {out} . --repo-type space")
    print("Git's own push is refused there: the weights of the bundled model and the pictures are binary files.", file=sys.stderr)


def write(out: Path, kind: Kind, model: str) -> None:
    """Write the folder of a Space.

    Args:
        out: the folder, new or empty.
        kind: its hardware.
        model: a short name or a Hub id.

    Raises:
        OSError: the folder cannot be written, or is not empty.
        ValueError: the model is none that a Space could fetch.
    """
    hub = hub_id(model)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OSError(f"{out} is there and not empty: pass a new folder")
    ignored = shutil.ignore_patterns(*DEVELOPMENT)
    shutil.copytree(PACKAGE, out / "avl", ignore=ignored, dirs_exist_ok=True)
    shutil.copytree(_paths.KERNELS, out / "kernels", ignore=ignored)
    for name in ASSETS:
        shutil.copytree(_paths.ASSETS / name, out / "assets" / name, ignore=ignored)
    if (PACKAGE.parent / "LICENSE").is_file():
        shutil.copy(PACKAGE.parent / "LICENSE", out)
    (out / "requirements.txt").write_text("\n".join(requirements(kind)) + "\n", "utf-8")
    (out / "README.md").write_text(front_matter(kind, hub) + BODY.format(kind=kind), "utf-8")
    (out / "app.py").write_text(APP.format(model=hub), "utf-8")


def hub_id(model: str) -> str:
    """Return the Hub id of a model, or ``tiny``.

    Raises:
        ValueError: it has none.
    """
    found = "tiny" if model == "tiny" else CHECKPOINTS.get(model, model)
    if found != "tiny" and not re.fullmatch(r"[\w.-]+/[\w.-]+", found):
        raise ValueError(f"model={model!r} is nothing that a Space could fetch: pass a Hub id, or one of {close_to(model)}")
    if Path(found).exists():
        raise ValueError(f"model={model!r} is a folder of this machine: upload it to the Hub and pass its id")
    return found


def requirements(kind: Kind) -> list[str]:
    """Return the lines of a Space's requirements.txt: this project's own, with the torch that its hardware needs."""
    kept = [line for line in project_requirements() if not re.match(r"(torch|triton)\b", line)]  # torch brings the triton that it needs
    return [*HARDWARE[kind].torch, *kept]


def project_requirements() -> list[str]:
    """Return what this project needs with its page: from the checkout's requirements.txt, else from the wheel's metadata."""
    file = PACKAGE.parent / "requirements.txt"
    if file.is_file():
        lines = (line.partition("#")[0].strip() for line in file.read_text("utf-8").splitlines())
        return [line for line in lines if line]
    asked = [line.partition(" extra == ") for line in metadata.requires("avl") or ()]
    return [line.strip().removesuffix(";").removesuffix("and").strip() for line, _, extra in asked if extra.strip("'\" ") in ("", "page")]


def front_matter(kind: Kind, hub: str) -> str:
    """Return the head of a Space's README.md.

    Args:
        kind: its hardware.
        hub: the model's Hub id, or ``tiny``.
    """
    (gradio,) = (line.partition("==")[2] for line in project_requirements() if line.startswith("gradio=="))
    lines = [
        "title: A-VL vs full attention — LLaVA, live",
        "emoji: 🔬",
        "colorFrom: blue",
        "colorTo: yellow",
        "sdk: gradio",
        f"sdk_version: {gradio}",
        'python_version: "3.12"',
        "app_file: app.py",
        "license: apache-2.0",
        "short_description: Watch adaptive attention keep, skip and evict image tokens",
        "header: mini",
    ]
    suggested = HARDWARE[kind].suggested
    lines += [f"suggested_hardware: {suggested}"] if suggested else []
    if hub != "tiny":
        lines += ["models:", f"  - {hub}", "preload_from_hub:", f"  - {hub}", "startup_duration_timeout: 1h"]
    return "\n".join(["---", *lines, "---", ""])
