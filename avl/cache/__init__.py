"""The KV cache: where tokens are stored and moved.

``cache`` (one generation), ``layer``, ``slots`` and ``contiguous`` (slot tables), ``layout`` and ``prefill_state`` (the prompt),
``ranking`` (from scores to the tokens to keep), ``inspect``, ``recorder`` and ``readback`` (for the page and for analysis).
"""
