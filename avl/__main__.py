import sys

from avl.cli.main import main

sys.exit(main())
