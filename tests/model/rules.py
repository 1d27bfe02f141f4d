"""Every rule of the commit protocol as a switch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self


@dataclass(frozen=True)
class Rules:
    """All True is the protocol. The comment says what an actor does instead when the rule is off."""

    # create-only
    outcome_create_only: bool = True  # a second outcome replaces the first
    manifest_create_only: bool = True  # another execution's manifest replaces the first
    records_create_only: bool = True  # a record replaces the one that has its number
    records_never_deleted: bool = True  # cleanup deletes the records below the newest
    outcomes_never_deleted: bool = True  # cleanup deletes the outcomes of the runs that it gives up
    # lost replies
    read_back_on_412: bool = True  # what exists is taken to be someone else's
    timeout_is_not_rejection: bool = True  # no answer is reported as "rejected"
    timeout_is_not_success: bool = True  # no answer is reported as "committed"
    nothing_deleted_after_unknown: bool = True  # a build that got no answer deletes its shards
    record_names_stored_digest: bool = True  # the record holds the digest of the writer's own manifest bytes
    # the outcome
    outcome_decides: bool = True  # of two executions each goes on with its own winners
    request_must_match: bool = True  # the outcome of another request is adopted
    rerun_keeps_values_of_outcome: bool = True  # a rerun counts as started when it is run again
    reuse_keeps_earliest_values: bool = True  # a build that reuses sealed shards counts as started now
    sweep_spares_outcome: bool = True  # the sweep spares only what this execution built itself
    # between base and head
    own_run_id_is_looked_for: bool = True  # only the head's number is read
    own_expiry_is_looked_for: bool = True  # what cleanup gave up is not looked for
    force_does_not_pass_expiry: bool = True  # a forced build does not look for it
    every_record_is_read: bool = True  # only the head is looked at
    another_log_is_refused: bool = True  # a build goes on in a log that was begun anew
    check_winners_before_commit: bool = True  # nobody looks whether the shards are still there
    # staleness
    stale_builds_are_refused: bool = True
    staleness_by_base_first: bool = True  # only the moment of the start counts
    staleness_by_started_at: bool = True  # only the base counts; an equal base may publish
    staleness_by_foreign_pointer: bool = True  # the moment of the reference's publish is not looked at
    store_clock: bool = True  # moments are the host's
    # the reference's pointer
    over_is_recorded: bool = True  # a record does not say which pointer of the reference it is over
    over_is_inherited: bool = True  # a record does not repeat its parent's
    over_is_read_again_after_the_log: bool = True  # pointer and head are two reads, with whatever happened in between
    over_names_its_manifest: bool = True  # cleanup cannot tell what the pointer served that a record is over
    foreign_pointer_is_left_alone: bool = True  # step 4 replaces a newer pointer of the reference
    # step 4
    if_match_on_pointer: bool = True  # a plain PUT
    pointer_takes_the_head: bool = True  # step 4 writes the writer's own record
    pointer_is_read_again_on_412: bool = True  # a refused PUT of the pointer ends step 4
    pointer_probes_once_more: bool = True  # step 4 ends with the PUT
    # readers
    probe_upward: bool = True  # the pointer is believed
    new_log_starts_anew: bool = True  # a number that was seen stays the lowest, whatever the log
    # rollback
    rollback_checks_expiry: bool = True  # the target's objects are looked at, not whether cleanup has given them up
    rollback_does_not_retry_number: bool = True  # a lost number is followed by the next
    rollback_counts_as_started_when_asked: bool = True  # it repeats the values of what it rolls back to
    # cleanup
    cleanup_commits_before_deleting: bool = True  # no record
    cleanup_plans_again: bool = True  # the old plan goes under the next number
    cleanup_deletes_exact_keys: bool = True  # it deletes whatever the runs that it gave up hold by then
    cleanup_repeats_holders_values: bool = True  # its record has a start of its own
    cleanup_leaves_foreign_pointer: bool = True  # its record is over the pointer that it read
    cleanup_respects_leases: bool = True
    cleanup_respects_grace: bool = True  # a version is given up as soon as it is superseded
    cleanup_reads_roots_last: bool = True  # it reads roots, then leases, then what there is to delete
    cleanup_keeps_what_pointer_names: bool = True
    cleanup_keeps_manifests_without_record: bool = True

    @classmethod
    def names(cls) -> list[str]:
        return [field.name for field in fields(cls)]

    def without(self, *names: str) -> Self:
        return replace(self, **dict.fromkeys(names, False))


PROTOCOL = Rules()
