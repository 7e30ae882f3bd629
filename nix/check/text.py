"""Tiers A and B: the text of our Nix, and its evaluation with the stand-in."""

import base64
import contextlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tree import Failure, Tree, output, tool

HARDWARE = """{
  boot.loader.grub.devices = [ "/dev/vda" ];
  fileSystems."/" = {
    device = "/dev/vda1";
    fsType = "xfs";
  };
  system.stateVersion = "26.05";
}
"""


def tracked(tree: Tree) -> None:
    stray = output(["git", "ls-files", "--others", "--exclude-standard", "*.nix", "flake.lock"], cwd=tree.origin)
    if stray:
        raise Failure(f"git does not track these files, so a flake does not see them: {' '.join(stray.split())}")


def parse(tree: Tree) -> None:
    output(["nix-instantiate", "--parse", *tree.files("*.nix")])


def format_(tree: Tree) -> None:
    program = tool("nixfmt", "cargo install nixfmt_rs --locked")
    output([program, "--check", *tree.files("*.nix")])


def dead_code(tree: Tree) -> None:
    output([tool("deadnix", "cargo install deadnix --locked"), "--fail", tree.root])


def lock(tree: Tree) -> None:
    """flake.lock says which nixpkgs, in full, of the branch that flake.nix names."""
    nodes = json.loads((tree.root / "flake.lock").read_text())["nodes"]
    urls = re.findall(r'inputs\.(\w+)\.url = "github:([^/"]+)/([^/"]+)/([^"]+)"', (tree.root / "flake.nix").read_text())
    if sorted(nodes) != sorted(["root", *(url[0] for url in urls)]):
        raise Failure(f"flake.nix has the inputs {[url[0] for url in urls]}, flake.lock {sorted(nodes)}")
    for name, owner, repository, branch in urls:
        original, locked = nodes[name]["original"], nodes[name]["locked"]
        if (original["owner"], original["repo"], original["ref"]) != (owner, repository, branch):
            raise Failure(f"{name} is {owner}/{repository}/{branch} in flake.nix, and not in flake.lock")
        kind, _, digest = locked["narHash"].partition("-")
        if kind != "sha256" or len(base64.b64decode(digest, validate=True)) != 32:
            raise Failure(f"narHash of {name} is no SHA-256: {locked['narHash']}")
        if not re.fullmatch("[0-9a-f]{40}", locked["rev"]):
            raise Failure(f"rev of {name} is no revision: {locked['rev']}")


def outputs(tree: Tree) -> None:
    tree.evaluate("outputs")


def options(tree: Tree) -> None:
    bad = [
        f"{option['name']} has no {what}"
        for option in tree.evaluate("options")
        for what, there in (("description", option["description"]), ("default or example", option["exampleOrDefault"]))
        if not there
    ]
    if bad:
        raise Failure("; ".join(bad))


def reference(tree: Tree) -> None:
    """Neither the reference configuration nor one that only enables it has a warning."""
    warnings = tree.evaluate("reference.warnings") + tree.evaluate("plain.warnings")
    if warnings:
        raise Failure("; ".join(warnings))


def refused(tree: Tree) -> None:
    for name, words in tree.evaluate("refusedWords").items():
        try:
            tree.evaluate(f"refused.{name}.rendered")
        except Failure as failure:
            if words not in str(failure):
                raise Failure(f"{name}: the message lacks {words!r}:\n{failure}") from failure
            continue
        raise Failure(f"{name} was accepted")


@contextlib.contextmanager
def readme_flake(tree: Tree) -> Iterator[Path]:
    """The README's flake as it stands there, beside the file that every NixOS machine has, made up."""
    blocks = re.findall(r"```nix\n(.*?)```", (tree.root / "README.md").read_text(), re.DOTALL)
    flakes = [block for block in blocks if "outputs =" in block]
    if len(flakes) != 1:
        raise Failure(f"README.md should show one flake, and shows {len(flakes)}")
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "flake.nix").write_text(flakes[0])
        (Path(work) / "hardware-configuration.nix").write_text(HARDWARE)
        yield Path(work) / "flake.nix"


def readme(tree: Tree) -> None:
    with readme_flake(tree) as flake:
        for name, machine in tree.evaluate("readme", "--arg", "flake", str(flake)).items():
            if machine["warnings"]:
                raise Failure(f"{name}: {machine['warnings']}")


def shell(tree: Tree) -> None:
    """Every piece of shell that a builder gets, and that a unit runs before it starts."""
    found = {
        f"{name}, {part}": text for name, parts in tree.evaluate("shell").items() for part, text in parts.items() if text
    }
    for name, text in found.items():
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failure(f"{name}: {done.stderr}")
    if not found:
        raise Failure("no shell was found in any package")


def claims(tree: Tree) -> None:
    """Test scripts as NixOS gets them: the linter that it runs over them runs here."""
    scripts = tree.evaluate("testScripts")
    for name, text in scripts.items():
        compile(text, f"{name}.py", "exec")
    linter = tool("pyflakes3", "all scripts do compile; package pyflakes3")
    with tempfile.TemporaryDirectory() as work:
        for name, text in scripts.items():
            (Path(work) / f"{name}.py").write_text(text)
        output([linter, work], env={"PYFLAKES_BUILTINS": "machine,subtest,start_all"})


CHECKS = {
    "tracked": tracked,
    "parse": parse,
    "format": format_,
    "dead-code": dead_code,
    "lock": lock,
    "outputs": outputs,
    "options": options,
    "reference": reference,
    "refused": refused,
    "readme": readme,
    "shell": shell,
    "claims": claims,
}
