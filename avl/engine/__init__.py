"""The engine: turns a request into events.

``request`` (what to run), ``scheduler`` (the order of runs; ``stream`` and ``race``), ``start`` and ``lanes`` (what they begin with),
``conversation``, ``lines`` and ``replay`` (further questions), ``sweep`` and ``verdict`` (one policy over a range),
``runner`` (one policy's run), ``decoder``, ``fused`` and ``cuda_graphs`` (decode steps), ``generation`` and ``sampling`` (what the model's
generation config asks for, and the next token), ``not_finite`` (logits that are no numbers), ``agreement`` (full attention's answer fed
through every policy), ``text`` and ``timing``.
"""
