"""What operators do to a prefix: clean it up, roll it back, verify it."""

from __future__ import annotations
