"""The written format of traces is the one that the code reads and writes."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from avl import trace
from avl.trace.document import KINDS

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "traces"
ROWS = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| (.*) \|$", (FOLDER / "README.md").read_text("utf-8"), re.M))


def test_every_event_and_field_is_described():
    assert set(ROWS) == {"kind", *KINDS}, "the head of the table, and every kind"
    for kind, cls in KINDS.items():
        outside = re.sub(r"\([^)]*\)", "", ROWS[kind])
        assert re.findall(r"`(\w+)`", outside) == [field.name for field in dataclasses.fields(cls)], kind
    for part in (trace.Arm, trace.Grid):
        text = (FOLDER / "README.md").read_text("utf-8")
        assert all(f"`{field.name}`" in text for field in dataclasses.fields(part))


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.name)
def test_recorded_traces_open_and_are_whole(file):
    text = file.read_text("utf-8")
    recorded = trace.Trace.from_json(text)
    assert json.loads(recorded.to_json()) == json.loads(text)
    arms = len(recorded.start.arms)
    assert len(recorded.of(trace.End)) == arms >= 2
    assert recorded.images
    for arm in range(arms):
        steps = recorded.of(trace.Step, arm)
        assert [step.t for step in steps] == list(range(1, len(steps) + 1))
        assert len(recorded.of(trace.Scores, arm)) == len(steps) + 1


def test_traces_of_schema_1_open_and_are_written_as_schema_2():
    """Float16 without a prefix, no mean and no rest: as a version before this one wrote them."""
    document = json.loads((FOLDER / "scene.json").read_text("utf-8"))
    document["schema"] = document["events"][0]["schema"] = 1
    n, kept = document["events"][0]["n_image"], []
    for event in document["events"]:
        if event["kind"] == "scores":
            del event["mean"], event["rest"]
            event["image"] = [trace.pack_exact(trace.unpack_scores(text, n)) for text in event["image"]]
            kept.append(event)
    found = trace.Trace.from_json(json.dumps(document))
    assert [list(event.image) for event in found.of(trace.Scores)] == [event["image"] for event in kept]
    assert {(event.mean, event.rest) for event in found.of(trace.Scores)} == {("", None)}
    written = json.loads(found.to_json())
    assert (written["schema"], written["events"][0]["schema"]) == (2, 2)
    assert trace.Trace.from_json(found.to_json()) == found


def test_recordings_from_before_predictions_open():
    document = json.loads((FOLDER / "scene.json").read_text("utf-8"))
    for arm in document["events"][0]["arms"]:
        for field in ("title", "pruned_from", "predicted", "spread"):
            del arm[field]
    recorded = trace.Trace.from_json(json.dumps(document))
    assert [(arm.title, arm.pruned_from, arm.predicted, arm.spread) for arm in recorded.start.arms] == [("", None, (), ())] * 2


def test_an_unknown_field_of_an_arm_is_one_sentence():
    document = json.loads((FOLDER / "scene.json").read_text("utf-8"))
    document["events"][0]["arms"][0]["color"] = "red"
    with pytest.raises(ValueError, match=r"bad start event: .*color"):
        trace.Trace.from_json(json.dumps(document))
