"""Run an image as ``docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges -v FOLDER:/cache`` does, with crun.

No daemon and no network of its own: the container listens where this machine does.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

NO_CAPABILITIES: dict[str, list[str]] = {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")}

CRUN = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec crun "$@"'
"""crun, where it does not see that the machine has both kinds of cgroups: it would refuse, though it is to use none."""


class Store:
    """Where tests/packaging/build_image.sh keeps what buildah made.

    Args:
        folder: the script's argument.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def buildah(self, *words: str) -> str:
        """Run buildah on this store; return what it prints."""
        where = ["--root", str(self.folder / "store"), "--runroot", str(self.folder / "run"), "--storage-driver", "overlay"]
        return subprocess.run(["buildah", *where, *words], check=True, capture_output=True, text=True).stdout.strip()

    def unpack(self, image: str) -> tuple[Path, dict[str, Any]]:
        """Return the file system of a new container of an image, and the image's settings, as Docker names them."""
        name = self.buildah("from", "--pull-never", "--signature-policy", str(self.folder / "policy.json"), image)
        return Path(self.buildah("mount", name)), json.loads(self.buildah("inspect", name))["Docker"]["config"]

    def remove(self) -> None:
        """Delete everything."""
        self.buildah("umount", "--all")
        subprocess.run(["rm", "-rf", str(self.folder)], check=True)


def mount(where: str, kind: str, *options: str, source: str | None = None) -> dict[str, Any]:
    return {"destination": where, "type": kind, "source": source or kind, "options": list(options)}


class Container:
    """A container that has started, not yet the page in it.

    Args:
        files: its file system, from :meth:`Store.unpack`.
        image: the image's settings.
        folder: for its own files.
        cache: what is mounted at ``/cache``.
        arguments: as after ``docker run … avl``.
        user: who runs it, None for the image's user.
        variables: as ``docker run --env``.
    """

    def __init__(
        self, files: Path, image: dict[str, Any], folder: Path, cache: Path, *arguments: str, user: int | None = None, **variables: str
    ) -> None:
        folder.mkdir()
        self.name, self._folder, self.image = folder.name, folder, image
        self.log = folder / "log.txt"
        uid, gid = (int(part) for part in image["User"].split(":")) if user is None else (user, user)
        self._process = {
            "args": [*image["Entrypoint"], *arguments],
            "env": [*image["Env"], *(f"{name}={value}" for name, value in variables.items())],
            "cwd": image["WorkingDir"],
            "user": {"uid": uid, "gid": gid},
            "capabilities": NO_CAPABILITIES,
            "noNewPrivileges": True,
        }
        spec = {
            "ociVersion": "1.0.2",
            "process": self._process,
            "root": {"path": str(files), "readonly": True},
            "mounts": [
                mount("/proc", "proc"),
                mount("/dev", "tmpfs", "nosuid", "mode=755", "size=65536k"),
                mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
                mount("/sys", "bind", "rbind", "ro", source="/sys"),
                mount("/tmp", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777"),
                mount("/cache", "bind", "rbind", "rw", source=str(cache)),
                *(mount(path, "bind", "rbind", "ro", source=path) for path in ("/etc/hosts", "/etc/resolv.conf")),
            ],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]},
        }
        (folder / "config.json").write_text(json.dumps(spec))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*self._crun(), "run", "--bundle", str(folder), self.name], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        while self.process.poll() is None and not (folder / "state" / self.name / "status").exists():
            time.sleep(0.02)

    def _crun(self) -> list[str]:
        return ["unshare", "--mount", "sh", "-c", CRUN, "crun", "--root", str(self._folder / "state"), "--cgroup-manager", "disabled"]

    def run(self, *words: str) -> tuple[int, str]:
        """Run a command in it, as ``docker exec`` does; return its status and what it says."""
        process = self._folder / "exec.json"
        process.write_text(json.dumps({**self._process, "args": words}))
        done = subprocess.run(
            [*self._crun(), "exec", "--process", str(process), self.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout.strip()

    def health(self) -> tuple[int, str]:
        """Run the image's health check."""
        kind, *words = self.image["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.run(*words)

    def wait_healthy(self, seconds: float = 600) -> float:
        """Return after how many seconds the health check says so."""
        began = time.monotonic()
        while (said := self.health())[0] != 0:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() - began < seconds, f"{said}\n{self.log.read_text()[-3000:]}"
            time.sleep(1)
        return time.monotonic() - began

    def signal(self, name: str) -> int:
        """Send a signal to its first process; return its status once it has ended."""
        subprocess.run([*self._crun(), "kill", self.name, name], check=True)
        return self.process.wait(30)

    def remove(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            subprocess.run([*self._crun(), "kill", self.name, "KILL"], check=False)
            self.process.wait(30)
