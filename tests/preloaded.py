"""Imported once by the process that tests/test_killed.py lets fork its runs."""

from .forked import import_everything

import_everything()
