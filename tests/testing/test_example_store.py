"""The store that docs/testing.md shows passes the suites, as the page says."""

from __future__ import annotations

from tests.meta.test_docs import DOCS, blocks

_EXAMPLE = next(block.text for block in blocks(DOCS / "testing.md") if "class TestDictStore" in block.text)
exec(compile(_EXAMPLE, "docs/testing.md", "exec"))
del ObjectStoreTests, CommitLogTests  # noqa: F821 (what the example imports is not to be collected)
