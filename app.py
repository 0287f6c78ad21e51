"""The page: load a model, warm it up, serve. ``python app.py --help`` tells the options, which are those of ``avl page``."""

from __future__ import annotations

import sys

from avl.cli import main

if __name__ == "__main__":
    sys.exit(main(only="page", program="app.py"))
