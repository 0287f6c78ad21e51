"""A program that presses Run as the page does, and keeps every byte that comes back."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from programs import Program

BOUNDARY = "b4d1c2"


@dataclass
class Heard:
    """What the server sent for one press: its messages, and ``size`` in bytes."""

    size: int
    messages: list[dict[str, Any]]
    values: list[dict[str, Any]] = field(default_factory=list)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for value in self.values if "events" in value for event in json.loads(value["events"])]


class Presser(Program):
    """A visitor without a browser."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.config = json.loads(self.request("GET", "/config")[2])

    def upload(self, path: Path) -> dict[str, Any]:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\nContent-Type: image/png\r\n\r\n'
        body = head.encode() + path.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()
        _, _, text = self.request("POST", "/gradio_api/upload", body, **{"content-type": f"multipart/form-data; boundary={BOUNDARY}"})
        return {"path": json.loads(text)[0], "meta": {"_type": "gradio.FileData"}}

    def depends(self, elem_id: str, event: str) -> int:
        """Return the number of what a component's event calls."""
        parts = {part["id"] for part in self.config["components"] if part["props"].get("elem_id") == elem_id}
        return next(one["id"] for one in self.config["dependencies"] if any(t[0] in parts and t[1] == event for t in one["targets"]))

    def run(self, picture: Path, question: str, chosen: dict[str, Any], seconds: float = 120) -> Heard:
        """Press Run and read the stream to its end."""
        session = secrets.token_hex(6)
        number = self.depends("avl-run", "click")
        data = [self.upload(picture), None, question, chosen, None]
        return self.hear({"data": data, "fn_index": number, "session_hash": session}, seconds)

    def hear(self, body: dict[str, Any], seconds: float = 120) -> Heard:
        self.request("POST", "/gradio_api/queue/join", json.dumps(body), **{"content-type": "application/json"})
        _, _, raw = self.request("GET", f"/gradio_api/queue/data?session_hash={body['session_hash']}", seconds=seconds)
        lines = [line.removeprefix("data: ") for line in raw.decode().split("\n\n") if line]
        heard = Heard(len(raw), [json.loads(line) for line in lines])
        value: Any = None
        for told in heard.messages:
            if told["msg"] not in ("process_generating", "process_completed") or not told["success"]:
                continue
            new = told["output"]["data"][0]
            whole = not heard.values or told["msg"] == "process_completed"
            value = new if whole else applied(value, new)
            heard.values.append(json.loads(json.dumps(value)))
        return heard


def applied(value: Any, edits: list[list[Any]]) -> Any:
    """Return a value with the edits that Gradio sends instead of the next one."""
    for action, path, new in edits:
        if not path:
            value = value + new if action == "append" else new
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        if action == "append":
            holder[path[-1]] += new
        elif action == "delete":
            del holder[path[-1]]
        elif action == "add" and isinstance(holder, list):
            holder.insert(path[-1], new)
        else:
            holder[path[-1]] = new
    return value
