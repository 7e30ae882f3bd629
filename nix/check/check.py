#!/usr/bin/env python3
"""`make nix-check`: the Nix side, checked with whatever this machine has. ../README.md says what each tier proves.

    check.py [--golden] [--without-mutations] [CHECK...]

--golden writes vm-tests/golden/ anew instead of comparing. NIXPKGS names a tree of nixpkgs and NIX a recent nix (default:
`nix` on the PATH) for tier E. Prints what it left out and why; ends with `N passed, N failed, N left out`.
"""

import argparse
import concurrent.futures
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.dont_write_bytecode = True

import mutations  # noqa: E402
import real  # noqa: E402
import rendered  # noqa: E402
import text  # noqa: E402
from tree import Failure, LeftOut, Tree  # noqa: E402

CHECKS = {**text.CHECKS, **rendered.CHECKS, **real.CHECKS}


def run(name: str, check) -> tuple[str, str]:
    """The outcome, and a line about it."""
    try:
        check()
        outcome, detail = "passed", ""
    except LeftOut as reason:
        outcome, detail = "left out", str(reason)
    except Failure as failure:
        outcome, detail = "FAILED", str(failure)
    except Exception:
        outcome, detail = "FAILED", traceback.format_exc()
    return outcome, f"nix-check: {outcome:<8} {name}" + (f": {detail}" if detail else "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="nix/check/check.py")
    parser.add_argument("checks", nargs="*", metavar="CHECK", help="names of checks; all of them by default")
    parser.add_argument("--golden", action="store_true", help="write vm-tests/golden/ anew")
    parser.add_argument("--without-mutations", action="store_true", help="no deliberate mistakes")
    arguments = parser.parse_args()
    unknown = set(arguments.checks) - CHECKS.keys()
    if unknown:
        parser.error(f"there is no check {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    if shutil.which("nix-instantiate") is None:
        sys.exit("nix-check: nix-instantiate is missing: run setup.sh (package nix-bin)")

    with tempfile.TemporaryDirectory() as work:
        tree = Tree.tracked(HERE.parent.parent, Path(work) / "tree")
        if arguments.golden:
            rendered.write_golden(tree, tree.origin)
            return
        jobs = {name: lambda name=name: CHECKS[name](tree) for name in arguments.checks or CHECKS}
        if not arguments.checks and not arguments.without_mutations:
            for mutation in mutations.ALL:
                where = Path(work) / mutation.name
                jobs[f"mistake {mutation.name}"] = lambda m=mutation, where=where: m.must_be_caught(tree, where, CHECKS)
        counts = dict.fromkeys(("passed", "FAILED", "left out"), 0)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for outcome, line in pool.map(run, jobs, jobs.values()):
                counts[outcome] += 1
                print(line, flush=True)
    print(f"{counts['passed']} passed, {counts['FAILED']} failed, {counts['left out']} left out")
    sys.exit(1 if counts["FAILED"] else 0)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    main()
