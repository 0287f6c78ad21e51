"""The engine: turns a request into events.

``request`` (what to run), ``scheduler`` (the order of runs; ``stream`` and ``race``), ``runner`` (one policy's run), ``decoder``, ``fused``
and ``cuda_graphs`` (decode steps), ``generation`` and ``sampling`` (what the model's generation config asks for, and the next token),
``not_finite`` (logits that are no numbers), ``text`` and ``timing``.
"""
