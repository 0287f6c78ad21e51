"""The command line: ``main`` (one line per command), ``compare``, ``record`` and ``doctor``."""
