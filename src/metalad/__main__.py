"""`python -m metalad` is the command `metalad`."""

import sys

from metalad.cli import main

sys.exit(main())
