"""`python -m artfs` is the command `artfs`."""

from __future__ import annotations

import sys

from artfs.cli import main

sys.exit(main())
