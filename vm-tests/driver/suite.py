"""Workers and claims brought together.

Claims that do not ask for a worker of their own share one. After a failure the worker is thrown away: what a failed
claim leaves behind must not decide the next one.
"""

import queue
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from . import claims
from .claims import Claim, Outcome
from .machine import Machine
from .qemu import Qemu


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
    def __init__(self, boot: Callable[[], Qemu], results: Path, say: Callable[[str], None] = print):
        self._boot = boot
        self._results = results
        self._say = say
        self._lock = threading.Lock()
        self.passed: list[Outcome] = []
        self.failed: list[Outcome] = []
        self.skipped: list[Claim] = []

    def run(self, wanted: list[Claim], jobs: int) -> bool:
        """Runs the claims on up to `jobs` workers at once; true when none failed."""
        waiting: queue.SimpleQueue[Claim] = queue.SimpleQueue()
        # Claims with a worker of their own come last: the shared worker is then not rebooted in between.
        for claim in sorted(wanted, key=lambda claim: claim.fresh_worker):
            if claim.skip_reason is None:
                waiting.put(claim)
            else:
                self.skipped.append(claim)
                self._say(f"skipped {claim.name}: {claim.skip_reason}")
        threads = [threading.Thread(target=self._work, args=(waiting,)) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return not self.failed

    def summary(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"{len(self.passed)} passed, {len(self.failed)} failed{skipped}"

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
                self._record(outcome, machine, log)
                if outcome.error is not None or claim.fresh_worker:
                    machine.discard()
        finally:
            machine.discard()

    def _record(self, outcome: Outcome, machine: Machine, log: Log) -> None:
        name, text = outcome.claim.name, log.take()
        folder = self._results / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "claim.log").write_text(text)
        with self._lock:
            if outcome.error is None:
                self.passed.append(outcome)
                self._say(f"passed  {name} ({outcome.seconds:.1f} s)")
                return
            (folder / "console.log").write_text(machine.console_text())
            self.failed.append(outcome)
            indented = "".join(f"\n    {line}" for line in outcome.error.splitlines()[:40])
            self._say(f"FAILED  {name} ({outcome.seconds:.1f} s){indented}\n    logs: {folder}")
