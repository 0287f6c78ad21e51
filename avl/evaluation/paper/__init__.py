"""The A-VL paper's Tables 2 and 3 with lmms-eval as the evaluator: ``avl paper``, and a model class for lmms-eval's own command."""
