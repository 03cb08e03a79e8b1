"""`python -m ortbench_export`."""

import sys

from ortbench_export.cli import main

sys.exit(main())
