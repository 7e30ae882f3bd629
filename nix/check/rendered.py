"""Tier C: what the module makes of the reference configuration, looked at by the programs that will read it."""

import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tree import Failure, LeftOut, Tree, output, tool

GOLDEN = Path("vm-tests/golden")
UNITS = "systemd/system/"
ORDER = ("After", "Requires", "Slice")
# What systemd-analyze says of a machine that is not the one the unit is for.
NOT_HERE = re.compile(
    r"is not executable|Command .* is not|^/lib/systemd|^/usr/lib/systemd|Failed to (prepare|create)"
    # Younger than Debian 12's systemd, which goes without.
    r"|Unknown key (name )?'DelegateSubgroup'"
)


def readable(text: str) -> str:
    """Store paths without what changes with every change of their content."""
    return re.sub(r"/nix/store/[a-z0-9]{32}-", "/nix/store/", text).replace("/nix/store/stand-in-", "/nix/store/")


def render(tree: Tree) -> dict[str, str]:
    files = tree.evaluate("reference.rendered.files")
    return {name: readable(text).rstrip("\n") + "\n" for name, text in files.items()}


def write_golden(tree: Tree, origin: Path) -> None:
    for name, text in render(tree).items():
        path = origin / GOLDEN / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"nix-check: wrote {path.relative_to(origin)}")


def golden(tree: Tree) -> None:
    now = render(tree)
    top = tree.root / GOLDEN
    then = {str(path.relative_to(top)): path.read_text() for path in sorted(top.rglob("*")) if path.is_file()}
    lines: list[str] = []
    for name in sorted(now.keys() | then.keys()):
        lines += difflib.unified_diff(
            then.get(name, "").splitlines(), now.get(name, "").splitlines(), f"golden/{name}", f"now/{name}", "", "", 1, ""
        )
    if lines:
        raise Failure("if this is meant, run `nix/check/check.py --golden`:\n" + "\n".join(lines[:60]))


def units(tree: Tree) -> None:
    analyze = tool("systemd-analyze", "package systemd")
    texts = {name.removeprefix(UNITS): text for name, text in render(tree).items() if name.startswith(UNITS)}
    with tempfile.TemporaryDirectory() as work:
        # All of them first: a socket wants to see its service.
        for name, text in texts.items():
            (Path(work) / name).write_text(text)
        for name in texts:
            path = Path(work) / name
            done = subprocess.run(
                [analyze, "verify", "--man=no", "--recursive-errors=no", path],
                capture_output=True,
                text=True,
                check=False,
                env={"SYSTEMD_UNIT_PATH": f"{work}:/lib/systemd/system", "PATH": "/usr/bin:/bin"},
            )
            said = [line for line in done.stderr.splitlines() if line.strip() and not NOT_HERE.search(line)]
            if said:
                raise Failure("\n".join(said))


def tmpfiles(tree: Tree) -> None:
    program = tool("systemd-tmpfiles", "package systemd")
    rules = render(tree)["tmpfiles.d/rundlet.conf"]
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        (root / "etc").mkdir()
        # Whoever runs this owns what is made: it is the syntax that is looked at.
        owner = f"root:x:{_id('-u')}:{_id('-g')}::/:/bin/sh\n"
        (root / "etc/passwd").write_text(owner)
        groups = {"root", *(rule.split()[4] for rule in rules.splitlines())}
        (root / "etc/group").write_text("".join(f"{group}:x:{_id('-g')}:\n" for group in sorted(groups)))
        (root / "rules.conf").write_text(rules)
        said = subprocess.run(
            [program, "--create", f"--root={root}", root / "rules.conf"], capture_output=True, text=True, check=False
        )
        missing = [rule for rule in rules.splitlines() if not (root / rule.split()[1].lstrip("/")).is_dir()]
        if said.returncode != 0 or said.stderr.strip() or missing:
            raise Failure(f"{said.stderr}{missing or ''}")


def _id(flag: str) -> str:
    return output(["id", flag]).strip()


def programs(tree: Tree) -> None:
    """Our Python on the Nix side has tests beside it."""
    tests = sorted([*(tree.root / "nix").glob("*_test.py"), *(tree.root / "nixos-module").glob("*_test.py")])
    if not tests:
        raise Failure("there are none")
    for test in tests:
        output([sys.executable, "-B", "-m", "unittest", "-q", test.stem], cwd=test.parent)


def _rundlet(tree: Tree) -> Path:
    built = [tree.origin / "target" / profile / "rundlet" for profile in ("release", "debug")]
    program = next((path for path in built if path.exists()), None)
    if program is None:
        raise LeftOut("rundlet is not built (cargo build -p rundlet)")
    return program


def config(tree: Tree) -> None:
    """The daemon's configuration, by the command that checks it when NixOS builds it."""
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "rundlet.json"
        path.write_text(render(tree)["rundlet.json"])
        output([_rundlet(tree), "serve", "--check", "--config", path])


def order(tree: Tree) -> None:
    """What a unit requires is started before it, what it is ordered after exists, and the pool comes first."""
    texts = {name.removeprefix(UNITS): text for name, text in render(tree).items() if name.startswith(UNITS)}
    words = {
        name: {key: {word for line in re.findall(f"^{key}=(.*)$", text, re.M) for word in line.split()} for key in ORDER}
        for name, text in texts.items()
    }
    for name, of in words.items():
        late = {unit for unit in of["Requires"] - of["After"]}
        unknown = {unit for unit in of["Requires"] | of["After"] | of["Slice"] if "rundlet" in unit} - texts.keys()
        if late or unknown:
            raise Failure(f"{name}: requires, but does not wait for {sorted(late)}; nobody defines {sorted(unknown)}")
    daemon = words["rundlet.service"]
    missing = {"rundlet-pool.service", "rundlet.socket"} - daemon["Requires"]
    if missing:
        raise Failure(f"rundlet.service does not require {sorted(missing)}")
    root = json.loads(render(tree)["rundlet.json"])["cgroup"]["root"]
    delegated = f"{next(iter(words['rundlet-pool.service']['Slice']))}/rundlet-pool.service"
    if not root.endswith(f"/{delegated}"):
        raise Failure(f"the daemon's slots are in {root}, and what systemd delegates is {delegated}")


def commands(tree: Tree) -> None:
    """Our own binary understands what the module has it do: it gets as far as missing the source or the image."""
    program = _rundlet(tree)
    for kind, missing in (("image", "cannot find"), ("template", "there is no image")):
        for name, definition in json.loads(render(tree)["rundlet-declared.json"])[kind].items():
            with tempfile.TemporaryDirectory() as store:
                done = subprocess.run(
                    [program, kind, *definition["make"]],
                    env={**os.environ, "RUNDLET_STORE": store},
                    capture_output=True,
                    text=True,
                    check=False,
                )
            if missing not in done.stderr:
                raise Failure(f"rundlet {kind} {' '.join(definition['make'])} ({name}):\n{done.stderr}")


def readme_commands(tree: Tree) -> None:
    """The command lines under the README's flake: our own binary understands each, and gets as far as missing a daemon."""
    program = _rundlet(tree)
    block = re.search(r"```nix\n[^`]*outputs =.*?```\n+```\n(.*?)```", (tree.root / "README.md").read_text(), re.DOTALL)
    lines = block[1].splitlines() if block else []
    if not any("rundlet create" in line for line in lines):
        raise Failure("no first sandbox is shown under the flake")
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "rundlet").symlink_to(program)
        env = {"PATH": f"{work}:/usr/bin:/bin", "RUNDLET_SOCKET": f"{work}/nowhere.sock"}
        for line in lines:
            done = subprocess.run(
                ["bash", "-c", f"sandbox=0123456789ab; {line}"], env=env, capture_output=True, text=True, check=False
            )
            if "no daemon answers" not in done.stderr:
                raise Failure(f"{line}\n{done.stderr}")


def kernel_config(tree: Tree) -> None:
    """Every line of the fragments survives kconfig, by the script that the guest kernel's derivation runs."""
    cache = Path(os.environ.get("RUNDLET_CACHE", Path.home() / ".cache/rundlet"))
    sources = sorted((cache / "kernel").glob("source-*/Kconfig"), key=lambda path: path.stat().st_mtime)
    if not sources:
        raise LeftOut("there is no patched kernel source yet (`make kernel` makes it)")
    folder = tree.root / "guest-kernel"
    with tempfile.TemporaryDirectory() as work:
        output([folder / "config.sh", sources[-1].parent, work, *sorted((folder / "config").glob("*.config"))])


CHECKS = {
    "golden": golden,
    "units": units,
    "order": order,
    "config": config,
    "tmpfiles": tmpfiles,
    "programs": programs,
    "commands": commands,
    "readme-commands": readme_commands,
    "kernel-config": kernel_config,
}
