"""Where a model comes from: the bundled folder, a local folder or the Hub, and what to advise where something is wrong there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from avl._paths import ASSETS
from avl.models.checkpoints import CHECKPOINTS, close_to

TINY = ASSETS / "tiny"


@dataclass(frozen=True)
class Source:
    """A model's place.

    Attributes:
        place: what ``from_pretrained`` takes: a folder or a Hub id.
        label: what to call it in a sentence: a name, a Hub id, or the folder as it was given.
        revision: branch, tag or commit of a Hub repository.
    """

    place: str
    label: str
    revision: str | None = None

    @property
    def local(self) -> bool:
        """Whether it is a folder, bundled or given."""
        return Path(self.place).is_dir()

    @property
    def folder(self) -> Path | None:
        """The folder of its files; None for a Hub repository that is not in the cache."""
        if self.local:
            return Path(self.place)
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.place, "config.json", revision=self.revision)
        return Path(found).parent if isinstance(found, str) else None

    @property
    def advice(self) -> str:
        """What to do where its files are broken or incomplete."""
        if self.place == str(TINY):
            return "install or clone the project again"
        if self.local:
            return "copy or download the folder again, or write it anew with save_pretrained"
        return f"fetch it again (hf download {self.place} --force-download)"

    def broken(self, problem: str) -> OSError:
        """Return an error that says what is wrong with the files and what to do."""
        return OSError(f"{self.label} {problem}: {self.advice}")

    def quoted(self, error: BaseException) -> str:
        """Return the first line of a foreign error without the server's folders."""
        text = str(error)
        folder = self.folder
        if folder is not None:
            text = text.replace(f"{folder}/", "").replace(str(folder), self.label)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        # a class of errors whose first line says where, the next one what
        line = " ".join(lines[:2]) if lines and lines[0].endswith(":") else lines[0] if lines else type(error).__name__
        line = re.sub(r"(?<![\w:/])/(?:[^\s/'\"]+/)+", "", line).rstrip(".:")
        return line if len(line) <= 200 else f"{line[:200]}…"


def find_source(name: str | Path, revision: str | None = None) -> Source:
    """Return the place of a model.

    Raises:
        OSError: there is no such folder, or it holds no config.json; says what may be passed.
        ValueError: a revision is given with a folder, which has none.
        TypeError: ``name`` is neither text nor a path, or ``revision`` no text.
    """
    if not isinstance(name, str | Path):
        raise TypeError(f"name={name!r} names no model: pass tiny, a short name like llava-1.5-7b, a Hub id or a folder")
    if not isinstance(revision, str | None):
        raise TypeError(f"revision={revision!r} is no branch, tag or commit: pass its name, or None for the newest")
    if str(name) == "tiny":
        if not (TINY / "config.json").exists():
            raise OSError("the bundled model's folder, assets/tiny, is missing: install or clone the project again")
        return _unversioned(Source(str(TINY), "the bundled model"), revision)
    if str(name) in CHECKPOINTS:
        return Source(CHECKPOINTS[str(name)], str(name), revision)
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise OSError(f"{path} holds no config.json: pass the folder that save_pretrained or hf download wrote")
        return _unversioned(Source(str(path), str(path)), revision)
    if path.is_absolute() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)):
        raise OSError(
            f"there is no model {name}: pass a short name (close to it: {close_to(str(name))}; avl doctor lists all), a Hub id like "
            "llava-hf/llava-1.5-7b-hf, or a folder"
        )
    return Source(str(name), str(name), revision)


def _unversioned(source: Source, revision: str | None) -> Source:
    if revision is not None:
        raise ValueError(f"revision={revision!r} is of a Hub repository, and {source.label} is a folder: leave it out")
    return source
