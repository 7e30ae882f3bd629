"""Workers and claims brought together.

Claims that do not ask for a worker of their own share one: what a claim leaves in it is cleared away, and if that does
not work, or after a failure, the worker is thrown away. A claim whose worker was ended by its emulator gets one more.
"""

import queue
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from . import claims
from .claims import Claim, Outcome
from .machine import Machine, MachineError
from .passes import Passes
from .qemu import Qemu

# What emulated processors do to a worker's kernel once in some hundred virtual machines (README.md): an exception in
# the middle of entering or leaving a guest, which ends in the first two; and, on a busy host, a second processor that
# loses its timer while the worker boots. No claim of ours can make or hide them.
EMULATOR_DEATHS = ("BUG: TASK stack guard page was hit", "Oops: int3", "Possible timer handling issue on cpu=")

# Ends what a claim has left, and prints what is there all the same and would not be in a worker where nothing has run.
# A boot of a worker takes ten times as long.
CLEAR = """
left() { leftovers | grep -E '^(process|socket|open|file /run/)'; }
left >/dev/null || exit 0
pkill -KILL 'rundlet|vmm-|vhost-blk-ro'
for _ in $(seq 20); do
    rm -rf /run/rundlet/*
    find /sys/fs/cgroup/rundlet* -depth -type d -exec rmdir {} + 2>/dev/null
    left >/dev/null || exit 0
    sleep 0.5
done
left
"""


class Log:
    """What a claim did, line by line."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, message: str) -> None:
        self.lines.append(message)

    def take(self) -> str:
        lines, self.lines = self.lines, []
        return "\n".join(lines) + "\n"


class Suite:
    def __init__(
        self,
        boot: Callable[[], Qemu],
        results: Path,
        say: Callable[[str], None] = print,
        passes: Passes | None = None,
        emulated: bool = True,
    ):
        self._boot = boot
        self._results = results
        self._say = say
        self._passes = passes
        self._emulated = emulated
        self._lock = threading.Lock()
        self.passed: list[Outcome] = []
        self.failed: list[Outcome] = []
        self.skipped: list[Claim] = []
        self.known: list[Claim] = []
        self.again: list[Claim] = []

    def run(self, wanted: list[Claim], jobs: int) -> bool:
        """Runs the claims on up to `jobs` workers at once; true when none failed."""
        waiting: queue.SimpleQueue[Claim] = queue.SimpleQueue()
        # Claims with a worker of their own come last: the shared worker is then not rebooted in between. Those that may
        # take longest come first, so that none of them is alone at the end.
        for claim in sorted(wanted, key=lambda claim: (claim.fresh_worker, -claim.timeout)):
            if claim.skip_reason is not None:
                self.skipped.append(claim)
                self._say(f"skipped {claim.name}: {claim.skip_reason}")
            elif self._passes is not None and self._passes.has(claim):
                self.known.append(claim)
                self._say(f"passed  {claim.name} (before, with the same programs)")
            else:
                waiting.put(claim)
        threads = [threading.Thread(target=self._work, args=(waiting,)) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return not self.failed

    def summary(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        known = f" ({len(self.known)} of them before, with the same programs; --fresh runs them again)" if self.known else ""
        again = f", {len(self.again)} run again after the emulator ended their worker" if self.again else ""
        return f"{len(self.passed) + len(self.known)} passed{known}, {len(self.failed)} failed{skipped}{again}"

    def _work(self, waiting: "queue.SimpleQueue[Claim]") -> None:
        log = Log()
        machine = Machine(self._boot, log)
        try:
            while True:
                try:
                    claim = waiting.get_nowait()
                except queue.Empty:
                    return
                if claim.fresh_worker:
                    machine.discard()
                outcome = claims.run(claim, machine)
                if self._emulator_died(outcome, machine):
                    self._say(f"again   {claim.name}: after {outcome.seconds:.1f} s the emulator ended the worker")
                    with self._lock:
                        self.again.append(claim)
                    machine.discard()
                    outcome = claims.run(claim, machine)
                used_up = outcome.error is not None or claim.fresh_worker or not self._cleared(machine, log)
                self._record(outcome, machine, log)
                if used_up:
                    machine.discard()
        finally:
            machine.discard()

    def _cleared(self, machine: Machine, log: Log) -> bool:
        if not machine.booted:
            return True
        try:
            left = machine.raw(CLEAR, 60).stdout.decode(errors="replace")
        except MachineError as error:
            left = str(error)
        if left:
            log(f"the worker is thrown away, since this claim left in it, and it could not be cleared away:\n{left}")
        return not left

    def _emulator_died(self, outcome: Outcome, machine: Machine) -> bool:
        if not (self._emulated and outcome.machine_failed):
            return False
        console = machine.console_text()
        return any(death in console for death in EMULATOR_DEATHS)

    def _record(self, outcome: Outcome, machine: Machine, log: Log) -> None:
        name, text = outcome.claim.name, log.take()
        folder = self._results / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "claim.log").write_text(text)
        with self._lock:
            if outcome.error is None:
                self.passed.append(outcome)
                if self._passes is not None:
                    self._passes.add(outcome.claim)
                self._say(f"passed  {name} ({outcome.seconds:.1f} s)")
                return
            (folder / "console.log").write_text(machine.console_text())
            self.failed.append(outcome)
            indented = "".join(f"\n    {line}" for line in outcome.error.splitlines()[:40])
            self._say(f"FAILED  {name} ({outcome.seconds:.1f} s){indented}\n    logs: {folder}")
