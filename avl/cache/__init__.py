"""The KV cache: where tokens are stored and moved.

``cache`` (one generation or conversation) and its ``counts``, ``layer``, ``slots`` and ``contiguous`` (slot tables), ``layout`` and
``prefill_state`` (the prompt), ``turns`` (what a conversation adds), ``parts`` (rows that run apart), ``ranking`` (from scores to the
tokens to keep), ``inspect``, ``recorder`` and ``readback`` (for the page and for analysis).
"""
