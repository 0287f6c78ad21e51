"""One policy, one file, one frozen dataclass: which KV entries are stored and which are read."""

from avl.policies.avl import AVL, PRESETS, TABLE_3
from avl.policies.base import Policy
from avl.policies.fastv import FastV
from avl.policies.full import Full
from avl.policies.h2o import H2O
from avl.policies.streaming_llm import StreamingLLM

__all__ = ["AVL", "H2O", "PRESETS", "TABLE_3", "FastV", "Full", "Policy", "StreamingLLM"]
