"""The trace of a run: ``events``, ``document`` (the JSON file of a run) and ``codec`` (packed sets and scores).

Imports no other part of the project. assets/traces/README.md describes the format.
"""

from avl.trace.codec import (
    SCORES_BYTES,
    listed_tokens,
    most_passes,
    pack_bits,
    pack_exact,
    pack_scores,
    scores_bytes,
    unpack_bits,
    unpack_scores,
)
from avl.trace.document import Trace, event_from_dict, events_json
from avl.trace.events import (
    MOST_NATS,
    SCHEMA,
    Agreement,
    Arm,
    End,
    Error,
    Event,
    Grid,
    Prefill,
    Reading,
    Repeat,
    Scores,
    Sets,
    Start,
    Step,
    TextSets,
    Warning,
)

__all__ = [
    "MOST_NATS",
    "SCHEMA",
    "SCORES_BYTES",
    "Agreement",
    "Arm",
    "End",
    "Error",
    "Event",
    "Grid",
    "Prefill",
    "Reading",
    "Repeat",
    "Scores",
    "Sets",
    "Start",
    "Step",
    "TextSets",
    "Trace",
    "Warning",
    "event_from_dict",
    "events_json",
    "listed_tokens",
    "most_passes",
    "pack_bits",
    "pack_exact",
    "pack_scores",
    "scores_bytes",
    "unpack_bits",
    "unpack_scores",
]
