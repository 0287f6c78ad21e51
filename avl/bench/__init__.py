"""The benchmark: ``benchmark`` (all cells), ``measure`` (one cell), ``roofline`` (lower bounds), ``report`` (text), ``plots`` (charts).

The check of a machine: ``gpu_check`` (schedule), ``gpu_parts`` (what is done), ``targets`` (what should come out), ``gpu_report`` (text).
"""
