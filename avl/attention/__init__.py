"""Attention: the only folder that hooks transformers.

``attachment`` (attach and detach), ``hooks`` and ``interface`` (how transformers calls us), ``prefill``, ``exact`` and ``scores`` (the
prompt), ``turn`` (the new tokens of a later turn), ``decode`` (one query per row).
"""
