"""The folder of this process for uploads and for pictures on their way to visitors: made, kept small, deleted at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

PARTIAL_SECONDS = 600  # a file of an upload that broke off


def make_folder() -> Path:
    """Make a folder of our own, inside GRADIO_TEMP_DIR where that is set, and tell Gradio to use it. Call before the page is built."""
    inside = os.environ.get("GRADIO_TEMP_DIR")
    if inside:
        Path(inside).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="avl-uploads-", dir=inside))
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder


def remove_folder(folder: Path) -> None:
    """Delete what :func:`make_folder` made, and let Gradio use the folder around it again."""
    shutil.rmtree(folder, ignore_errors=True)
    if os.environ.get("GRADIO_TEMP_DIR") == str(folder):
        del os.environ["GRADIO_TEMP_DIR"]


class Quota:
    """Keep a folder below a size by deleting the oldest files.

    Args:
        folder: whose files, in all folders below it.
        most: bytes.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most

    def make_room(self, size: int, keep: Collection[str] = ()) -> int:
        """Delete the oldest files until ``size`` more bytes fit, and what broken uploads left; return the bytes that were deleted.

        Args:
            size: bytes to come.
            keep: paths that stay, such as the page's own examples.
        """
        files = sorted(self._files(), key=lambda file: (not self._broken(*file), file[1].st_mtime))
        total = sum(stat.st_size for _, stat in files)
        freed = 0
        for path, stat in files:
            if str(path) in keep or not (self._broken(path, stat) or total - freed + size > self._most):
                continue
            try:
                path.unlink()
                freed += stat.st_size
                if path.parent != self._folder:
                    path.parent.rmdir()
            except OSError:  # another file beside it, or somebody was faster
                continue
        return freed

    def _broken(self, path: Path, stat: os.stat_result) -> bool:
        return path.parent == self._folder and time.time() - stat.st_mtime > PARTIAL_SECONDS

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for root, _, names in os.walk(self._folder):
            for name in names:
                path = Path(root) / name
                try:
                    yield path, path.stat(follow_symlinks=False)
                except OSError:
                    continue
