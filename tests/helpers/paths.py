"""Where the tests find their data."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PROJECT = TESTS.parent
FIXTURES_ROOT = TESTS / "fixtures"
GOLDEN_DATA = TESTS / "golden"
