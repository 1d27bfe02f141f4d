"""What operators do to a prefix: clean it up, roll it back, verify it."""

from __future__ import annotations

from shardyfusion.operations.cleanup import CleanupResult, cleanup
from shardyfusion.operations.cleanup_plan import CleanupPlan
from shardyfusion.operations.rollback import rollback
from shardyfusion.operations.verify import VerifyReport, verify
from shardyfusion.operations.verify_shard import Mode, ShardCheck

__all__ = ["CleanupPlan", "CleanupResult", "Mode", "ShardCheck", "VerifyReport", "cleanup", "rollback", "verify"]
