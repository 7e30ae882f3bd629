# worker: fresh
# timeout: 1200
# nixos: there the module's units run by themselves; here they are installed as the module renders them
# The units that the NixOS module renders run as they are: the pool is ready before the daemon, the first word to its socket
# starts the daemon, a sandbox lives through restarts of it, and each unit gives up what it does not need.

import json
import re

GOLDEN = "/opt/rundlet/test/golden"
ROOT = "/sys/fs/cgroup/rundlet.slice/rundlet-pool.service"
SOCKET = "/run/rundlet/api.sock"
# What only NixOS knows, and where it is here.
PLACES = (
    "s,/nix/store/rundlet-[0-9.]*/bin/rundlet,/opt/rundlet/bin/rundlet,g;"
    "s,/nix/store/rundlet.json,/etc/rundlet/rundlet.json,g"
)
health = f"curl --silent --fail --max-time 60 --unix-socket {SOCKET} http://rundlet/v1/health"


def shown(unit, name):
    return machine.succeed(f"systemctl show --value --property {name} {unit}").strip()


def inspect(sandbox):
    return json.loads(machine.succeed(f"rundlet inspect {sandbox}"))


def is_the_same(before):
    now = inspect(before["id"])
    assert (now["pid"], now["cgroup"]) == (before["pid"], before["cgroup"]), (before, now)
    assert now["phase"] in ("ready", "running") and now["recovered"], now
    assert machine.succeed(f"rundlet exec {before['id']} -- cat /tmp/mark") == "still here\n"


with subtest("the rendered units are all that is installed"):
    machine.succeed(
        "mkdir -p /etc/rundlet",
        f"cp {GOLDEN}/rundlet.json /etc/rundlet/",
        "rundlet serve --check --config /etc/rundlet/rundlet.json",
        f"cd {GOLDEN}/systemd/system; for unit in rundlet.* rundlet-pool.*; "
        f"do sed '{PLACES}' $unit >/etc/systemd/system/$unit; done",
        "! grep -r /nix/store /etc/systemd/system/rundlet*",
        "grep -q ^rundlet: /etc/group || echo rundlet:x:900: >>/etc/group",
        f"systemd-tmpfiles --create {GOLDEN}/tmpfiles.d/rundlet.conf",
        "systemctl daemon-reload",
    )
    units = "rundlet.slice rundlet-pool.service rundlet.socket rundlet.service"
    said = machine.succeed(f"cd /etc/systemd/system; systemd-analyze verify --man=no {units} 2>&1 || true")
    # This one is younger than Debian 12's systemd: it matters when the pool itself is started again.
    said = [line for line in said.splitlines() if "rundlet" in line and "'DelegateSubgroup'" not in line]
    assert not said, said

with subtest("the pool is ready when its unit says so, and no daemon is needed for it"):
    machine.fail(f"test -d {ROOT}")
    machine.succeed("systemctl start rundlet-pool.service")
    assert machine.succeed(f"ls -d {ROOT}/slot-* | wc -l").strip() == "8"
    assert machine.succeed(f"cat {ROOT}/keeper/cgroup.procs").strip() == shown("rundlet-pool.service", "MainPID")
    enabled = set(machine.succeed(f"cat {ROOT}/cgroup.subtree_control").split())
    assert {"cpu", "io", "memory", "pids"} <= enabled, enabled
    assert machine.succeed(f"cat {ROOT}/pids.max").strip() == "max"

with subtest("the first word to the socket starts the daemon"):
    machine.succeed("systemctl start rundlet.socket")
    machine.fail("systemctl is-active rundlet.service")
    assert machine.succeed(f"stat -c '%a %U %G' {SOCKET}").split() == ["660", "root", "rundlet"]
    machine.succeed(health)
    machine.succeed("systemctl is-active rundlet.service")
    machine.succeed("curl --silent --fail http://127.0.0.1:9464/metrics | grep -q ^rundlet_")

with subtest("the group may use it, others may not"):
    machine.succeed(f"setpriv --reuid 65534 --regid 65534 --groups 900 {health}")
    machine.fail(f"setpriv --reuid 65534 --regid 65534 --clear-groups {health}")

with subtest("a sandbox runs, in a slot of the pool, as a user of its own"):
    sandbox = machine.succeed("rundlet create --memory 128 debian", timeout=300).strip()
    machine.succeed(f"rundlet exec {sandbox} -- sh -c 'echo still here >/tmp/mark'")
    before = inspect(sandbox)
    place = machine.succeed(f"cat /proc/{before['pid']}/cgroup").strip()
    assert re.fullmatch(r"0::/rundlet.slice/rundlet-pool.service/slot-\d{4}", place), place
    uid = int(machine.succeed(f"stat -c %u /proc/{before['pid']}"))
    assert 1900000000 <= uid < 1900000016, uid
    assert machine.succeed(f"cat {ROOT}/{place.rsplit('/')[-1]}/pids.max").strip() == "64"

with subtest("it lives through a restart of the daemon, and through its death"):
    first = shown("rundlet.service", "MainPID")
    machine.succeed("systemctl restart rundlet.service")
    second = shown("rundlet.service", "MainPID")
    assert second not in ("0", first)
    is_the_same(before)
    machine.succeed(f"kill -KILL {second}")
    machine.wait_until_succeeds(f"test $(systemctl show --value --property MainPID rundlet.service) -gt 0 && {health}")
    assert shown("rundlet.service", "MainPID") != second
    is_the_same(before)

with subtest("its slot is empty when it is removed"):
    slot = f"{ROOT}/{before['cgroup'].rsplit('/')[-1]}"
    machine.succeed(f"grep -q 'populated 1' {slot}/cgroup.events")
    machine.succeed(f"rundlet rm --force {sandbox}")
    machine.wait_until_succeeds(f"grep -q 'populated 0' {slot}/cgroup.events", timeout=60)

with subtest("what the units may do is little"):
    # The daemon makes the jails of sandboxes: that takes root, mounts, namespaces, other users.
    for unit, most in (("rundlet-pool.service", 3.0), ("rundlet.service", 5.0)):
        rated = machine.succeed(f"systemd-analyze security --no-pager {unit} | cat")
        exposure = float(re.search(r"exposure level for \S+: ([\d.]+)", rated)[1])
        machine.succeed(f"echo exposure of {unit}: {exposure}")
        assert exposure <= most, rated
