from tests.faults import test_kill_points as t
from tests.faults.test_kill_points import *
@pytest.mark.parametrize("kind", ["local"])
def test_states(kind, root, quick_directory):
    sweep_and_report(kind, "sqlite", root, quick_directory, stop_by_exception)
    a = set(STATES[kind, "sqlite"])
    killer = Killer(fork=True)
    sweep_and_report(kind, "sqlite", root, quick_directory, lambda j, p: killer.stop(j, p.number))
    killer.end()
    for s in sorted(STATES[kind, "sqlite"] - a, key=len): print("NEW", sorted(s))
    for s in sorted(a, key=len)[:12]: print("A", sorted(s))
    assert 0
@pytest.mark.parametrize("kind", ["memory"])
def test_mem(kind, root, quick_directory):
    sweep_and_report(kind, "local_slatedb", root, quick_directory, stop_by_exception)
    for s in sorted(STATES[kind, "local_slatedb"], key=len): print("M", sorted(s))
    assert 0
