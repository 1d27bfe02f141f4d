"""The commit protocol, explored state by state: with all of its rules nothing breaks, and without any one something does."""

from __future__ import annotations

import pytest

from tests.model.configurations import CONFIGURATIONS
from tests.model.explore import explore
from tests.model.invariants import INVARIANTS, check
from tests.model.machine import Configuration
from tests.model.rules import PROTOCOL, Rules

TWO_EXECUTIONS = "the same run id twice"
OLD_RUN = "a run id that was published before"
STALLED = "cleanup and a build that stalls"
REFERENCE_CLEANED = "cleanup where the reference publishes"

NECESSARY = [
    # (without this rule, in this configuration, this invariant breaks)
    ("outcome_create_only", TWO_EXECUTIONS, "I8"),
    ("manifest_create_only", TWO_EXECUTIONS, "I2"),
    ("records_create_only", "two writers", "I1"),
    ("records_never_deleted", STALLED, "I1"),
    ("outcomes_never_deleted", "cleanup and a rerun of an old run id", "I1"),
    ("read_back_on_412", "one writer, three faults", "I4"),
    ("timeout_is_not_rejection", "one writer, three faults", "I4"),
    ("timeout_is_not_success", "one writer, three faults", "I4"),
    ("nothing_deleted_after_unknown", "one writer, three faults", "I2"),
    ("record_names_stored_digest", TWO_EXECUTIONS, "I2"),
    ("outcome_decides", TWO_EXECUTIONS, "I8"),
    ("request_must_match", "the same run id for two requests", "I4"),
    ("rerun_keeps_values_of_outcome", "a rerun and another writer", "I6"),
    ("rerun_keeps_values_of_outcome", TWO_EXECUTIONS, "I1"),
    ("reuse_keeps_earliest_values", "cleanup and a rerun that reuses shards", "I2"),
    ("sweep_spares_outcome", TWO_EXECUTIONS, "I2"),
    ("own_run_id_is_looked_for", TWO_EXECUTIONS, "I4"),
    ("own_run_id_is_looked_for", "the same run id twice, forced", "I1"),
    ("own_run_id_is_looked_for", "the same run id twice, forced", "I9"),
    ("own_expiry_is_looked_for", STALLED, "I2"),
    ("force_does_not_pass_expiry", "cleanup and a forced build that stalls", "I2"),
    ("every_record_is_read", OLD_RUN, "I1"),
    ("another_log_is_refused", "a build in a prefix that is begun anew", "I6"),
    ("check_winners_before_commit", "the reference's cleanup", "I2"),
    ("stale_builds_are_refused", "two writers", "I6"),
    ("staleness_by_base_first", "a build and cleanup within a second", "I6"),
    ("staleness_by_started_at", "two writers", "I6"),
    ("staleness_by_foreign_pointer", "the reference publishes twice", "I6"),
    ("store_clock", "hosts' clocks are off", "I6"),
    ("over_is_recorded", "the reference publishes twice", "I5"),
    ("over_is_inherited", "a reader while the reference publishes", "I5"),
    ("over_is_read_again_after_the_log", "a reader while the reference publishes", "I3"),
    ("over_is_read_again_after_the_log", "the reference, a rollback and a forced build", "I5"),
    ("over_names_its_manifest", "cleanup after the reference's rollback", "I2"),
    ("foreign_pointer_is_left_alone", "the reference publishes twice", "I5"),
    ("if_match_on_pointer", "the reference publishes twice", "I5"),
    ("if_match_on_pointer", "rollback and a writer", "I3"),
    ("pointer_takes_the_head", OLD_RUN, "I3"),
    ("pointer_is_read_again_on_412", "two writers", "I5"),
    ("pointer_probes_once_more", "a store without If-Match", "I5"),
    ("probe_upward", "a reader and two writers", "I5"),
    ("new_log_starts_anew", "a reader of a prefix that is begun anew", "I5"),
    ("rollback_checks_expiry", "rollback and cleanup", "I2"),
    ("rollback_does_not_retry_number", "rollback and cleanup", "I2"),
    ("rollback_does_not_retry_number", "rollback and a writer", "I6"),
    ("rollback_counts_as_started_when_asked", "rollback and a writer", "I6"),
    ("cleanup_commits_before_deleting", STALLED, "I2"),
    ("cleanup_plans_again", STALLED, "I2"),
    ("cleanup_deletes_exact_keys", "cleanup and the same run id twice", "I2"),
    ("cleanup_repeats_holders_values", "a build and cleanup within a second", "I6"),
    ("cleanup_leaves_foreign_pointer", REFERENCE_CLEANED, "I5"),
    ("cleanup_respects_leases", STALLED, "I7"),
    ("cleanup_respects_grace", "cleanup and a reader", "I2"),
    ("cleanup_reads_roots_last", REFERENCE_CLEANED, "I2"),
    ("cleanup_keeps_what_pointer_names", "cleanup after the reference's rollback", "I2"),
    ("cleanup_keeps_manifests_without_record", "cleanup and a reader of the reference's snapshots", "I2"),
]


@pytest.mark.parametrize(
    "configuration",
    [
        pytest.param(each, id=each.name, marks=[pytest.mark.slow, pytest.mark.timeout(1800)] if each.slow else [])
        for each in CONFIGURATIONS.values()
    ],
)
def test_nothing_breaks(configuration: Configuration) -> None:
    found = explore(configuration, PROTOCOL, check)
    print(f"{configuration.name}: {found.states} states; {found.reports}")
    assert found.broken is None, f"{INVARIANTS[found.broken]}\n{found}"
    assert found.reports == configuration.reports
    assert found.states >= configuration.at_least


@pytest.mark.parametrize(("rule", "name", "invariant"), NECESSARY)
def test_each_rule_is_necessary(rule: str, name: str, invariant: str) -> None:
    found = explore(CONFIGURATIONS[name], PROTOCOL.without(rule), check, only=invariant)
    print(f"without {rule}, {name!r} breaks {found}")
    assert found.broken == invariant, f"{found.states} states without {rule}, and {INVARIANTS[invariant]}"


def test_every_rule_and_every_invariant_has_its_case() -> None:
    assert {rule for rule, _, _ in NECESSARY} == set(Rules.names())
    assert {invariant for _, _, invariant in NECESSARY} == INVARIANTS.keys()
