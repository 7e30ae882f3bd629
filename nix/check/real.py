"""Tier E: the same against a real tree of nixpkgs, `NIXPKGS=<tree>`, by a recent nix, `NIX=<program>` (2.18 or newer)."""

import json
import os
import re
import subprocess

from rendered import readable, render
from text import readme_flake
from tree import Failure, LeftOut, Tree

# A machine that does not trust its caches, and needs none: nothing is built here.
SETTINGS = "experimental-features = nix-command flakes\nsubstitute = false\nbuild-users-group =\n"


def evaluate(tree: Tree, attribute: str, apply: str = "it: it"):
    """Parts of real.nix. What NixOS or nixpkgs warn of is an error."""
    nixpkgs = os.environ.get("NIXPKGS")
    if not nixpkgs:
        raise LeftOut("NIXPKGS names no tree of nixpkgs")
    expression = f"({apply}) (import {tree.root}/nix/check/real.nix {{ tree = {nixpkgs}; }}).{attribute}"
    done = subprocess.run(
        [os.environ.get("NIX", "nix"), "eval", "--impure", "--json", "--expr", expression],
        env={**os.environ, "NIX_CONFIG": SETTINGS},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stderr.replace(str(tree.root) + "/", "").strip()
    if done.returncode != 0 or "warning" in said.lower():
        raise Failure(said[-4000:])
    return json.loads(done.stdout)


def outputs(tree: Tree) -> None:
    evaluate(tree, "outputs")


def module(tree: Tree) -> None:
    warnings = evaluate(tree, "module")["warnings"]
    if warnings:
        raise Failure("; ".join(warnings))


def refused(tree: Tree) -> None:
    for name, words in tree.evaluate("refusedWords").items():
        try:
            evaluate(tree, f"refused.{name}")
        except Failure as failure:
            if words not in str(failure):
                raise Failure(f"{name}: the message lacks {words!r}:\n{failure}") from failure
            continue
        raise Failure(f"{name} was accepted")


def rendered(tree: Tree) -> None:
    """Every line that our module makes of the reference configuration is in what NixOS makes of it."""
    theirs = {name: readable(text) for name, text in evaluate(tree, "rendered").items()}
    for name, text in render(tree).items():
        if name.endswith(".json"):
            missing = [] if _shape(json.loads(theirs[name])) == _shape(json.loads(text)) else ["its shape"]
        else:
            lines = {_bare(line) for line in theirs.get(name, "").splitlines()}
            missing = [line for line in text.splitlines() if line and _bare(line) not in lines]
        if missing:
            raise Failure(f"NixOS renders {name} without {missing}:\n{theirs.get(name)}")


def _bare(line: str) -> str:
    """A command line with the plain names of what is in the store: versions and hashes are not the stand-in's to know."""
    words = [re.sub(r"[\d.]+$", "", word.rsplit("/", 1)[-1]) if "/nix/store" in word else word for word in line.split()]
    return " ".join(words)


def _shape(value):
    if isinstance(value, dict):
        return {key: _shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shape(inner) for inner in value]
    return "path" if "/nix/store" in str(value) else value


def options_doc(tree: Tree) -> None:
    evaluate(tree, "optionsDoc")


def readme(tree: Tree) -> None:
    with readme_flake(tree) as flake:
        evaluate(tree, "readme", f"it: it {flake}")


CHECKS = {
    "real-outputs": outputs,
    "real-module": module,
    "real-refused": refused,
    "real-rendered": rendered,
    "real-options-doc": options_doc,
    "real-readme": readme,
}
