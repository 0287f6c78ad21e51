"""The benchmark: ``benchmark`` (the command), ``measure`` (one cell), ``roofline`` (lower bounds) and ``plots`` (text and figures)."""
