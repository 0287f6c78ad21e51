"""Models: ``families`` (supported ones), ``loading``, ``images``, ``inputs``, ``merging`` weights, ``random_weights`` for benchmarks."""
