"""The benchmark: ``benchmark`` (all cells), ``measure`` (one cell), ``roofline`` (lower bounds), ``report`` (text), ``plots`` (charts)."""
