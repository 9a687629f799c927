"""Validation: the suite that a schema implies, quarantine, drift."""

import os

os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")  # Great Expectations reads it when it is imported.
