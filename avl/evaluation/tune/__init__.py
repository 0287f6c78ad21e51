"""``avl tune``: which setting of A-VL stores and reads least and still keeps a task's score."""
