"""`python -m metalad` is the command `metalad`."""

import sys

from metalad.cli.main import main

sys.exit(main())
