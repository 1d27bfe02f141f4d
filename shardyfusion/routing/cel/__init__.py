"""CEL routing (docs/format.md, section 6): which shard a row belongs to, as an expression over its columns says."""
