"""Training recipe of the bundled model: ``train`` (both stages), ``vision`` (stage 1), ``packing`` and ``topics`` (stage 2).

``model`` and ``tokenizer`` define it, ``optim`` holds the optimizer, ``export`` writes the checkpoint.
"""
