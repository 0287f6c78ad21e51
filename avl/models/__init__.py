"""Models.

``families`` (supported ones), ``checkpoints`` (short names), ``source``, ``files``, ``loading``, ``pictures_only`` and ``processing``
(checkpoints), ``images``, ``prompt`` and ``inputs`` (requests), ``merging`` weights; for benchmarks ``random_weights`` and
``random_configs``.
"""
