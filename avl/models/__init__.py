"""Models.

``families`` (supported ones), ``source``, ``files``, ``loading`` and ``processing`` (checkpoints), ``images``, ``prompt`` and ``inputs``
(requests), ``merging`` weights, ``random_weights`` for benchmarks.
"""
