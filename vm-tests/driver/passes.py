"""Passes that need not be seen again: of a claim that has passed with exactly these programs, on exactly this worker.

What a claim depends on is hashed by content: the programs, the guest's kernel and init, the root filesystems, the
worker and its QEMU, this driver, the tools and the claim itself; of documents those that the claim names. One byte differs,
and it runs again. Failures are not kept.
"""

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from .claims import Claim

# A pass of a tree that nobody comes back to is of no use.
KEEP_SECONDS = 30 * 24 * 3600


class Passes:
    """One empty file for each pass, named by the hash of everything that led to it."""

    def __init__(self, folder: Path, common: str, trust: bool = True, named: Iterable[tuple[str, Path]] = ()):
        """`common` is the hash of what all claims depend on, `named` what only those do that have its name in their text.
        Without `trust` passes are noted and not believed."""
        self._folder = folder
        self._named = list(named)
        self._common = common
        self._trust = trust

    def has(self, claim: Claim) -> bool:
        path = self._path(claim)
        if not self._trust or not path.exists():
            return False
        os.utime(path)
        return True

    def add(self, claim: Claim) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path(claim).touch()

    def sweep(self) -> None:
        for path in self._folder.glob("*.passed"):
            if time.time() - path.stat().st_mtime > KEEP_SECONDS:
                path.unlink(missing_ok=True)

    def _path(self, claim: Claim) -> Path:
        text = claim.path.read_bytes()
        state = hashlib.sha256(f"{self._common}\0{claim.name}\0".encode() + text)
        named = [(name, path) for name, path in self._named if name.encode() in text]
        if named:
            state.update(hash_of(named, []).encode())
        return self._folder / f"{claim.name}-{state.hexdigest()[:24]}.passed"


def folder() -> Path:
    cache = os.environ.get("RUNDLET_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache/rundlet") / "passes"


def hash_of(files: Iterable[tuple[str, Path]], words: Iterable[str]) -> str:
    """Of names and contents; of a symbolic link its target."""
    state = hashlib.sha256()
    for name, path in files:
        state.update(f"file\0{name}\0".encode())
        if path.is_symlink():
            state.update(os.readlink(path).encode())
        elif path.is_file():
            with open(path, "rb") as file:
                state.update(hashlib.file_digest(file, "sha256").digest())
    for word in words:
        state.update(f"word\0{word}\0".encode())
    return state.hexdigest()
