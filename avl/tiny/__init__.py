"""The bundled model: ``data`` (drawn scenes, their questions and answers) and ``recipe`` (how it was trained)."""
