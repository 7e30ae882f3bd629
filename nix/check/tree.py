"""The tree that is checked: a copy of what git tracks, since a flake sees nothing else."""

import json
import os
import shutil
import subprocess
from pathlib import Path


class Failure(Exception):
    """The check found something; the text says what."""


class LeftOut(Exception):
    """The check cannot run here; the text says why."""


def output(command: list, cwd: Path | None = None, env: dict | None = None) -> str:
    """Standard output of a command that has to succeed."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Failure(f"`{' '.join(map(str, command[:4]))} …` failed:\n{(done.stderr + done.stdout)[-4000:]}")
    return done.stdout


def tool(name: str, advice: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:" + str(Path.home() / ".cargo/bin"))
    if path is None:
        raise LeftOut(f"{name} is not there ({advice})")
    return path


class Tree:
    def __init__(self, origin: Path, root: Path):
        self.origin = origin
        self.root = root

    @classmethod
    def tracked(cls, origin: Path, root: Path) -> "Tree":
        names = output(["git", "ls-files", "-z"], cwd=origin).split("\0")
        for name in filter(None, names):
            source = origin / name
            if not source.is_file():
                continue
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, root / name)
        return cls(origin, root)

    def copy(self, root: Path) -> "Tree":
        """Hard links: who changes a file puts another one in its place."""
        shutil.copytree(self.root, root, copy_function=os.link)
        return Tree(self.origin, root)

    def files(self, pattern: str) -> list[Path]:
        return sorted(self.root.rglob(pattern))

    def evaluate(self, attribute: str, *arguments: str):
        """An attribute of stand-in.nix. Nothing is written to a Nix store, so none has to be writable."""
        done = subprocess.run(
            ["nix-instantiate", "--eval", "--strict", "--json", self.root / "nix/check/stand-in.nix"]
            + ["-A", attribute, *arguments],
            env={**os.environ, "NIX_REMOTE": "dummy://", "NIX_PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Failure(done.stderr.replace(str(self.root) + "/", "").strip()[-4000:])
        return json.loads(done.stdout)
