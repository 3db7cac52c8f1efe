"""`python -m flatstore`: the command line."""

import sys

from flatstore.cli import main

sys.exit(main())
