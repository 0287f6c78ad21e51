"""Data of the bundled model: ``scenes`` (layout), ``drawing`` (pixels), ``questions`` and ``words`` (text on signs)."""
