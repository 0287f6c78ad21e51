"""The paper's figures: of one recorded run (``attention``, ``summary``), and of a model by one command.

``answers`` and ``language`` record attention, ``modalities`` (Figure 1), ``sparsity`` (3), ``concordance`` (4, 5), ``reading`` (8) and
``settings`` (9, 10) make a figure each, ``statements`` compares it with what the paper says, ``written`` keeps all in a folder.
"""
