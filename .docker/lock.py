"""Write the image's lock files from requirements.txt: every package pinned, every wheel by its hash. Needs ``uv`` on PATH.

    python .docker/lock.py

``lock.txt`` is what both variants install; ``lock-cuda.txt`` torch, Triton and NVIDIA's libraries as PyPI has them; ``lock-cpu.txt`` the
same torch without CUDA, from its own index; ``lock-uv.txt`` the installer. They hold for Linux and Python 3.11 or newer. They are here
because the image alone uses them: a checkout and a Space install requirements.txt, which lets torch fit the machine.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE.parent / "requirements.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_ONLY = re.compile(r"torch|triton|cuda-.*|nvidia-(?!ml-py$).*")
HEADER = "# Made by `python .docker/lock.py`{}.\n"


def compiled(requirements: str, *options: str) -> list[str]:
    """Return the entries of a lock: name, version and hashes.

    Args:
        requirements: as lines of a requirements file.
        options: further ones for ``uv pip compile``.
    """
    command = ["uv", "pip", "compile", "-", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"]
    done = subprocess.run([*command, "--no-header", "--no-annotate", *options], input=requirements, text=True, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(done.returncode)
    return [entry for entry in re.split(r"\n(?=\S)", done.stdout.strip()) if entry]


def name(entry: str) -> str:
    """Return which package an entry pins."""
    return entry.partition("==")[0]


def write(file: str, entries: list[str], note: str = "") -> None:
    """Write a lock file."""
    (HERE / file).write_text(HEADER.format(note) + "".join(f"{entry}\n" for entry in entries), encoding="utf-8")


def main() -> None:
    """Resolve and write."""
    entries = compiled(REQUIREMENTS.read_text(encoding="utf-8"))
    cuda = [entry for entry in entries if CUDA_ONLY.fullmatch(name(entry))]
    (torch,) = (entry for entry in cuda if name(entry) == "torch")
    version = torch.split()[0]
    write("lock.txt", [entry for entry in entries if entry not in cuda])
    write("lock-cuda.txt", cuda)
    write("lock-uv.txt", compiled("uv"))
    write("lock-cpu.txt", compiled(f"{version}+cpu", "--no-deps", "--default-index", CPU_INDEX), f" from {CPU_INDEX}")


if __name__ == "__main__":
    main()
