"""The engine: turns a request into events.

``request`` (what to run), ``scheduler`` (the order of runs; ``stream`` and ``race``), ``runner`` (one policy's run), ``decoder``, ``fused``
and ``cuda_graphs`` (decode steps), ``sampling``, ``text`` and ``timing``.
"""
