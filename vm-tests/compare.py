"""The figures of `rundlet bench`, ours beside those of peers, taken in workers: `vm-tests/run --compare`.

Each part is one run of `rundlet bench` in a worker of its own, so that the figures of a part may be compared with each other; the
report of all parts is made on the host, in target/vm-tests/compare/. Not a claim: nothing here passes or fails.
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from driver.machine import Machine, MachineError
from driver.suite import EMULATOR_DEATHS

# An emulator that ends a worker may do so this often for one part.
TRIES = 3
# By far the longest part: hundreds of sandboxes of two systems, emulated.
TIMEOUT = 3000


@dataclass(frozen=True)
class Part:
    name: str
    # Arguments of `rundlet bench`, and of these those for peers.
    arguments: str
    peers: str = ""
    firecracker: str = ""
    # Whether its figures are on the page of all parts.
    on_page: bool = True

    def command(self, with_firecracker: bool) -> str:
        words = [self.arguments, self.peers, self.firecracker if with_firecracker else ""]
        return f"rundlet bench {' '.join(filter(None, words))} --json /tmp/part.json"


PARTS = [
    Part(
        "starts", "start --count 20 --concurrency 1,10 --template base --cold debian", "--peer qemu", "--peer firecracker"
    ),
    Part("two-hundred", "start --count 200 --concurrency 200 --template base", "", "--peer firecracker-restore"),
    Part("density", "density --count 200 --step 100 --at-once 4 --template base", "", "--peer firecracker-restore"),
    Part("deployed", "start --count 60 --concurrency 10 --deployed 200 --template base"),
    Part("node", "node --template base --pairs 50 --count 500 --alive 50 --settle 10", on_page=False),
]


def run(boot: Callable, results: Path, with_firecracker: bool, wanted: list[str], say: Callable[[str], None]) -> None:
    parts = [part for part in PARTS if not wanted or part.name in wanted]
    results.mkdir(parents=True, exist_ok=True)
    for part in parts:
        say(f"compare: {part.name}: {part.command(with_firecracker)}")
        print(_measure(part, boot, results, with_firecracker, say), flush=True)


def report(rundlet: Path, results: Path) -> Path | None:
    """One page of all parts that were measured; None of parts that have no place there."""
    page = results / "report.html"
    files = [results / f"{part.name}.json" for part in PARTS if part.on_page]
    files = [path for path in files if path.exists()]
    if not files:
        return None
    subprocess.run([rundlet, "bench", "report", *files, "--html", page], check=True, stdout=subprocess.DEVNULL)
    return page


def names() -> list[str]:
    return [part.name for part in PARTS]


def _measure(part: Part, boot: Callable, results: Path, with_firecracker: bool, say: Callable[[str], None]) -> str:
    for attempt in range(1, TRIES + 1):
        machine = Machine(boot, log=lambda message: None)
        try:
            machine.succeed("modprobe vhost_vsock", "rundlet template build --memory 128 debian base")
            table = machine.succeed(part.command(with_firecracker), timeout=TIMEOUT)
            machine.copy_from_vm("/tmp/part.json", str(results / "new"))
            copied = results / "new/part.json"
            json.loads(copied.read_text())
            copied.replace(results / f"{part.name}.json")
            return table
        except MachineError:
            console = machine.console_text()
            if attempt == TRIES or not any(death in console for death in EMULATOR_DEATHS):
                say(console[-4000:])
                raise
            say(f"compare: {part.name}: the emulator ended the worker, once more")
        finally:
            machine.discard()
            shutil.rmtree(results / "new", ignore_errors=True)
    raise AssertionError("the last try returns or raises")
