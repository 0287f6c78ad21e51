"""The trace of a run: ``events``, ``document`` (the JSON file of a run) and ``codec`` (packed sets and scores).

Imports no other part of the project. assets/traces/README.md describes the format.
"""

from avl.trace.codec import pack_bits, pack_scores, unpack_bits, unpack_scores
from avl.trace.document import Trace, event_from_dict
from avl.trace.events import SCHEMA, Arm, End, Error, Event, Grid, Prefill, Reading, Repeat, Scores, Sets, Start, Step, Warning

__all__ = [
    "SCHEMA",
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
    "Trace",
    "Warning",
    "event_from_dict",
    "pack_bits",
    "pack_scores",
    "unpack_bits",
    "unpack_scores",
]
