"""The payload disk: the programs under test, as they are in target/ now.

Seen in the worker as /opt/rundlet, laid out like an installation:
  bin/            rundlet, rundlet-vmm, vhost-blk-ro, and the claims' own tools (vm-tests/tools)
  share/rundlet/  vmlinux, initrd.cpio
  store/          images imported on the host, which a unit of the worker copies to /var/lib/rundlet
  test/           root filesystems as tar files, for claims that import; golden/, what the NixOS module renders, and
                  the module's own program, declare.py; documents with lines that a claim runs
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAMS = ("target/release/rundlet", "target/release/rundlet-vmm", "target/release/vhost-blk-ro")
GUEST_FILES = ("target/guest/vmlinux", "target/guest/initrd.cpio")
# No claim depends on them but those that name them.
DOCUMENTS = ("README.md",)
# Payloads of other states of the tree go away after this long; a worker that runs from one keeps its file open.
KEEP_SECONDS = 3600


@contextlib.contextmanager
def locked(tree: Path):
    """One run at a time makes a payload: others are made of the same files, or sweep what is half made."""
    folder = tree / "target/vm-tests"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "payload.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(tree: Path, store: Path | None, tars: list[Path], say=print, peers: dict[str, Path] | None = None) -> Path:
    """Makes the disk, or finds it made from the same files. Missing programs are named and left out.

    `peers` are programs of others, by the name that they get in bin/.
    """
    parts = contents(tree, say) + documents(tree) + [(f"test/{path.name}", path) for path in tars]
    parts += [(f"bin/{name}", path) for name, path in (peers or {}).items()]
    if store is not None:
        parts += [(f"store/{path.relative_to(store)}", path) for path in sorted(store.rglob("*"))]
    cache = tree / "target/vm-tests/payload"
    cache.mkdir(parents=True, exist_ok=True)
    disk = cache / f"{_fingerprint(parts)}.erofs"
    if not disk.exists():
        _remove_old(cache)
        _make_disk(parts, disk)
    os.utime(disk)
    return disk


def import_store(tree: Path, tars: list[Path], say=print) -> Path | None:
    """Images of the root filesystems, imported by the rundlet under test; None when it is not built or fails."""
    rundlet = tree / "target/release/rundlet"
    if not rundlet.exists():
        return None
    cache = tree / "target/vm-tests/store"
    store = cache / _fingerprint([(path.name, path) for path in [rundlet, *tars]])
    if store.exists():
        return store
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    work = Path(tempfile.mkdtemp(dir=cache))
    for path in tars:
        command = [rundlet, "image", "import", path, path.stem]
        done = subprocess.run(
            command, env={**os.environ, "RUNDLET_STORE": str(work)}, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            say(f"payload: no images in the worker: `rundlet image import` failed: {done.stderr.strip()[-500:]}")
            return None
    work.chmod(0o755)
    work.rename(store)
    return store


def contents(tree: Path, say) -> list[tuple[str, Path]]:
    """What is under test, by the name that it has in the worker."""
    contents, missing = [], []
    for folder, names in (("bin", PROGRAMS), ("share/rundlet", GUEST_FILES)):
        for name in names:
            path = tree / name
            if path.exists():
                contents.append((f"{folder}/{path.name}", path))
            else:
                missing.append(name)
    if missing:
        say(f"payload: not built, so not in the worker: {', '.join(missing)}")
    tools = tree / "vm-tests/tools"
    contents += [(f"bin/{path.name}", path) for path in sorted(tools.glob("*")) if path.is_file()]
    golden = tree / "vm-tests/golden"
    contents += [(f"test/golden/{path.relative_to(golden)}", path) for path in sorted(golden.rglob("*")) if path.is_file()]
    declare = tree / "nixos-module/declare.py"
    contents.append((f"test/{declare.name}", declare))
    return contents


def documents(tree: Path) -> list[tuple[str, Path]]:
    return [(f"test/{name}", tree / name) for name in DOCUMENTS]


def _fingerprint(contents: list[tuple[str, Path]]) -> str:
    state = hashlib.sha256()
    for name, path in contents:
        info = path.lstat()
        state.update(f"{name}\0{path}\0{info.st_size}\0{info.st_mtime_ns}\0{info.st_mode}\n".encode())
    return state.hexdigest()[:16]


def _remove_old(cache: Path) -> None:
    for old in cache.glob("*.erofs"):
        if time.time() - old.stat().st_mtime > KEEP_SECONDS:
            old.unlink(missing_ok=True)


def _make_disk(contents: list[tuple[str, Path]], disk: Path) -> None:
    if shutil.which("mkfs.erofs") is None:
        sys.exit("mkfs.erofs is missing: run setup.sh")
    with tempfile.TemporaryDirectory(dir=disk.parent) as work:
        top = Path(work) / "tree"
        top.mkdir()
        for name, path in contents:
            place = top / name
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(path, place)
        image = Path(work) / "image"
        subprocess.run(["mkfs.erofs", "--quiet", "--all-root", image, top], check=True, stdout=subprocess.DEVNULL)
        image.rename(disk)


def _link_or_copy(path: Path, place: Path) -> None:
    """A hard link where one file system holds both. Copies keep what the fingerprint saw."""
    try:
        os.link(path, place, follow_symlinks=True)
    except OSError:
        shutil.copy2(path, place)
