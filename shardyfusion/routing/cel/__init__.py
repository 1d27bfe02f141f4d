"""CEL routing (docs/format.md, section 12): which shard a row belongs to, as an expression over its columns says."""
