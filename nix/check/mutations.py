"""Deliberate mistakes, each of which a named check has to catch: proof that the checks can fail."""

from dataclasses import dataclass
from pathlib import Path

from tree import Failure, LeftOut, Tree


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str
    # The check that has to fail, and words of what it says.
    check: str
    words: str

    def must_be_caught(self, tree: Tree, where: Path, checks: dict) -> None:
        mutated = tree.copy(where)
        path = where / self.file
        text = path.read_text()
        if self.old not in text:
            raise Failure(f"{self.file} has no {self.old!r} any more: this mistake has to be made somewhere else")
        path.unlink()
        path.write_text(text.replace(self.old, self.new))
        try:
            checks[self.check](mutated)
        except LeftOut:
            raise
        except Failure as failure:
            if self.words in str(failure):
                return
            raise Failure(f"{self.check} failed, but not with {self.words!r}:\n{failure}") from failure
        raise Failure(f"the check {self.check} did not catch it")


ALL = [
    Mutation(
        name="misspelt-option",
        file="nixos-module/host.nix",
        old="services.udev.extraRules =",
        new="services.udev.extraRule =",
        check="reference",
        words="services.udev.extraRule' does not exist",
    ),
    Mutation(
        name="wrong-type",
        file="nixos-module/host.nix",
        old='"vm.swappiness" = cfg.host.swappiness;',
        new='"vm.swappiness" = [ cfg.host.swappiness ];',
        check="golden",
        words="boot.kernel.sysctl.vm.swappiness",
    ),
    Mutation(
        name="store-not-mounted-first",
        file="nixos-module/store.nix",
        old='unitConfig.RequiresMountsFor = "/var/lib/rundlet";',
        new="",
        check="golden",
        words="-RequiresMountsFor=/var/lib/rundlet",
    ),
    Mutation(
        name="directive-that-systemd-does-not-know",
        file="nixos-module/hardening.nix",
        old="ProtectClock = true;",
        new="ProtectClok = true;",
        check="units",
        words="ProtectClok",
    ),
    Mutation(
        name="word-that-rundlet-does-not-know",
        file="nixos-module/store.nix",
        old='"--scratch-size"',
        new='"--scratch"',
        check="commands",
        words="--scratch",
    ),
    Mutation(
        name="dependency-between-units-missing",
        file="nixos-module/daemon.nix",
        old="after = needed ++ [",
        new="after = [",
        check="order",
        words="does not wait for ['rundlet-metrics.socket', 'rundlet-pool.service', 'rundlet.socket']",
    ),
    Mutation(
        name="pool-that-nobody-starts",
        file="nixos-module/daemon.nix",
        old="systemd.services.rundlet-pool = {",
        new="systemd.services.rundlet-pools = {",
        check="order",
        words="nobody defines ['rundlet-pool.service']",
    ),
    Mutation(
        name="key-that-the-daemon-does-not-know",
        file="nixos-module/daemon.nix",
        old="wait_ms = cfg.pool.waitMs;",
        new="wait = cfg.pool.waitMs;",
        check="config",
        words="cgroup.wait: unknown field",
    ),
    Mutation(
        name="value-that-the-daemon-does-not-take",
        file="nix/check/reference.nix",
        old='settings.log = "info,',
        new='settings.log = "inof,',
        check="config",
        words='log: "inof"',
    ),
    Mutation(
        name="slots-in-another-place-than-delegated",
        file="nixos-module/daemon.nix",
        old="/rundlet-pool.service\"",
        new="/pool.service\"",
        check="order",
        words="which systemd gives to nobody",
    ),
    Mutation(
        name="file-that-is-not-there",
        file="guest-kernel/default.nix",
        old="./config.sh",
        new="./configure.sh",
        check="outputs",
        words="configure.sh is not there",
    ),
    Mutation(
        name="kernel-option-dropped",
        file="guest-kernel/config/30-storage.config",
        old="CONFIG_MISC_FILESYSTEMS=y\n",
        new="",
        check="kernel-config",
        words="CONFIG_EROFS_FS: wanted y, is off",
    ),
    Mutation(
        name="lock-of-another-branch",
        file="flake.nix",
        old="nixpkgs/nixos-26.05",
        new="nixpkgs/nixos-unstable",
        check="lock",
        words="not in flake.lock",
    ),
    Mutation(
        name="readme-with-an-option-of-old",
        file="README.md",
        old="services.rundlet.pool.slots = 200;",
        new="services.rundlet.slots = 200;",
        check="readme",
        words="services.rundlet.slots' does not exist",
    ),
    Mutation(
        name="readme-with-a-switch-of-old",
        file="README.md",
        old='rundlet rm --force "$sandbox"',
        new='rundlet rm --kill "$sandbox"',
        check="readme-commands",
        words="--kill",
    ),
    Mutation(
        name="broken-claim",
        file="vm-tests/root-is-read-only.py",
        old="before = machine.succeed(",
        new="before == machine.succeed(",
        check="claims",
        words="undefined name 'before'",
    ),
]
