"""`python -m tools.levels` writes docs/reference/levels.md, in about three minutes on one core."""

from __future__ import annotations

import sys

from bench import store
from tools.levels.page import PAGE, page

if __name__ == "__main__":
    store.write_text(PAGE, page())
    sys.stderr.write(f"written: {PAGE}\n")
