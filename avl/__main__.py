import sys

from avl.cli import main

sys.exit(main())
