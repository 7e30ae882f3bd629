"""Claims: one Python file each in vm-tests/, whose name says what holds.

A claim sees `machine`, `subtest` and `start_all` and nothing else, so that the NixOS test driver runs it unchanged.
Its first comment lines may say:
  # worker: fresh       it gets a worker of its own, which is thrown away afterwards
  # timeout: SECONDS    it may take longer than the default
  # skip: REASON        it is not run, and counted as skipped
"""

import contextlib
import re
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .machine import Machine, MachineError

DEFAULT_TIMEOUT = 600
_HEADER = re.compile(r"#\s*(worker|timeout|skip):\s*(.*\S)\s*$")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+$")


@dataclass(frozen=True)
class Claim:
    name: str
    path: Path
    fresh_worker: bool = False
    timeout: int = DEFAULT_TIMEOUT
    skip_reason: str | None = None


@dataclass(frozen=True)
class Outcome:
    claim: Claim
    seconds: float
    error: str | None
    # Whether it was the worker that failed.
    machine_failed: bool = False


class ClaimError(Exception):
    """A claim's header, or a name on the command line, is wrong."""


def load(path: Path) -> Claim:
    fields: dict[str, str] = {}
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if match := _HEADER.match(line):
            fields[match[1]] = match[2]
    if fields.get("worker", "fresh") != "fresh":
        raise ClaimError(f"{path}: 'worker' may only say 'fresh', not '{fields['worker']}'")
    if not fields.get("timeout", "1").isdecimal():
        raise ClaimError(f"{path}: 'timeout' is a number of seconds, not '{fields['timeout']}'")
    return Claim(
        name=path.stem,
        path=path,
        fresh_worker="worker" in fields,
        timeout=int(fields.get("timeout", DEFAULT_TIMEOUT)),
        skip_reason=fields.get("skip"),
    )


def find(folder: Path) -> list[Claim]:
    """Every claim of the folder. A claim's name has words joined by dashes, which no module's name has."""
    return [load(path) for path in sorted(folder.glob("*.py")) if _NAME.match(path.stem)]


def select(claims: list[Claim], names: list[str]) -> list[Claim]:
    known = {claim.name: claim for claim in claims}
    wanted = [name.removesuffix(".py").rsplit("/", 1)[-1] for name in names]
    for name in wanted:
        if name not in known:
            raise ClaimError(f"there is no claim '{name}': `vm-tests/run --list` names them all")
    return [known[name] for name in wanted] if names else claims


def run(claim: Claim, machine: Machine) -> Outcome:
    """Runs one claim on a machine; its failure is part of the outcome, never an exception."""
    started = time.monotonic()
    machine.deadline = started + claim.timeout
    names = {
        "machine": machine,
        "subtest": _subtest(machine.log),
        "start_all": machine.start,
        "__name__": "claim",
        "__file__": str(claim.path),
    }
    error, machine_failed = None, False
    try:
        exec(compile(claim.path.read_text(), str(claim.path), "exec"), names)
    except Exception as problem:
        error, machine_failed = _explain(problem, claim.path), isinstance(problem, MachineError)
        machine.log(error)
    finally:
        machine.deadline = None
    return Outcome(claim, time.monotonic() - started, error, machine_failed)


def _subtest(log: Callable[[str], None]):
    @contextlib.contextmanager
    def subtest(name: str) -> Iterator[None]:
        log(f"subtest: {name}")
        try:
            yield
        except Exception:
            log(f"subtest failed: {name}")
            raise

    return subtest


def _explain(problem: Exception, path: Path) -> str:
    """The message, and the claim's lines that led to it: the driver's own frames tell a reader nothing."""
    lines = [frame.lineno for frame in traceback.extract_tb(problem.__traceback__) if frame.filename == str(path)]
    place = " < ".join(f"{path.name}:{number}" for number in reversed(lines))
    return f"{type(problem).__name__}: {problem}" + (f"\nat {place}" if place else "")
