"""`python -m jemstone` is the command `jemstone`."""

import sys

from jemstone.cli import main

sys.exit(main())
