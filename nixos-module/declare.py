"""Brings the store's images and templates to what is declared, and touches no other.

    declare.py RUNDLET DECLARED STATE

DECLARED: {"image": {NAME: {"make": [WORDS AFTER `rundlet image`]}}, "template": ...}. STATE remembers what was made
from what, and is written after each step. What is no longer declared is removed; where `rundlet` refuses, because it is
in use, it is remembered and tried again the next time. A template that no longer fits this host is made again, though
its definition is the same. Status 1 if something could not be made.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

# Templates hold images: they go first and come last.
REMOVE, MAKE = ("template", "image"), ("image", "template")


def rundlet(program: str, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([program, *words], stdout=subprocess.PIPE, text=True, check=False)


def there(program: str, kind: str) -> set[str]:
    done = rundlet(program, kind, "ls", "--json")
    if done.returncode != 0:
        sys.exit(f"rundlet {kind} ls failed")
    return {item["name"] for item in json.loads(done.stdout)}


class State:
    def __init__(self, path: Path):
        self.path = path
        try:
            self.made = json.loads(path.read_text())
        except FileNotFoundError:
            self.made = {}

    def of(self, kind: str) -> dict:
        return self.made.setdefault(kind, {})

    def write(self) -> None:
        part = self.path.with_suffix(".part")
        with part.open("w") as file:
            json.dump(self.made, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        part.rename(self.path)


def remove(program: str, kind: str, declared: dict, state: State) -> None:
    for name in sorted(state.of(kind).keys() - declared.keys()):
        if name in there(program, kind) and rundlet(program, kind, "rm", name).returncode != 0:
            print(f"{kind} {name} is no longer declared and stays for now", file=sys.stderr)
            continue
        del state.of(kind)[name]
        state.write()


def fits(program: str, kind: str, name: str) -> bool:
    """Templates are bound to more than their definitions tell: the processor, and what KVM offers of it."""
    return kind != "template" or rundlet(program, kind, "check", name).returncode == 0


def make(program: str, kind: str, declared: dict, state: State) -> bool:
    whole = True
    present = there(program, kind)
    for name, definition in sorted(declared.items()):
        if name in present and state.of(kind).get(name) == definition and fits(program, kind, name):
            continue
        if rundlet(program, kind, *definition["make"]).returncode != 0:
            print(f"{kind} {name} could not be made", file=sys.stderr)
            whole = False
            continue
        state.of(kind)[name] = definition
        state.write()
    return whole


def main() -> None:
    program, declared, state = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), State(Path(sys.argv[3]))
    for kind in REMOVE:
        remove(program, kind, declared[kind], state)
    made = [make(program, kind, declared[kind], state) for kind in MAKE]
    if not all(made):
        sys.exit(1)


if __name__ == "__main__":
    main()
