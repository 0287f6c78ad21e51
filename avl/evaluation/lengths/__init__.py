"""What becomes of attention and of answers as they grow: ``avl lengths``."""
