# worker: fresh
# timeout: 1200
# nixos: there the module's units run by themselves; here they are installed as the module renders them
# The units that the NixOS module renders run as they are: systemd has nothing to say against them, the first word to a socket
# starts the daemon, its group may use it, a sandbox runs, and each unit gives up what it does not need.

import json
import re

SOCKET = "/run/rundlet/api.sock"
UNITS = "rundlet.slice rundlet-pool.service rundlet.socket rundlet-metrics.socket rundlet.service rundlet-store.service"
health = f"curl --silent --fail --max-time 60 --unix-socket {SOCKET} http://rundlet/v1/health"


with subtest("the rendered units are all that is installed"):
    machine.succeed("module-units install", "rundlet serve --check --config /etc/rundlet/rundlet.json")
    said = machine.succeed(f"cd /etc/systemd/system; systemd-analyze verify --man=no {UNITS} 2>&1 || true")
    # This one is younger than Debian 12's systemd: it matters when the pool itself is started again.
    said = [line for line in said.splitlines() if "rundlet" in line and "'DelegateSubgroup'" not in line]
    assert not said, said

with subtest("the first word to the socket starts the daemon"):
    machine.succeed("systemctl start rundlet.socket rundlet-metrics.socket")
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
    pid = json.loads(machine.succeed(f"rundlet inspect {sandbox}"))["pid"]
    place = machine.succeed(f"cat /proc/{pid}/cgroup").strip()
    assert re.fullmatch(r"0::/rundlet.slice/rundlet-pool.service/slot-\d{4}", place), place
    uid = int(machine.succeed(f"stat -c %u /proc/{pid}"))
    assert 1900000000 <= uid < 1900000016, uid
    assert machine.succeed(f"cat /sys/fs/cgroup{place.removeprefix('0::')}/pids.max").strip() == "64"

with subtest("the daemon imports images with all their owners and modes"):
    machine.succeed(
        f"rundlet rm --force {sandbox}",
        "mkdir -p /srv/tree/bin /srv/tree/dev /srv/tree/proc /srv/tree/run /srv/tree/sys /srv/tree/tmp",
        "cp /bin/busybox /srv/tree/bin/stat && cp /bin/busybox /srv/tree/bin/su",
        "chown 7:8 /srv/tree/bin/su && chmod 4750 /srv/tree/bin/su",
        "node-api POST /v1/images '{\"name\": \"tree\", \"path\": \"/srv/tree\"}'",
    )
    sandbox = machine.succeed("rundlet create --memory 128 tree", timeout=300).strip()
    assert machine.succeed(f"rundlet exec {sandbox} -- /bin/stat -c '%a %u %g' /bin/su") == "4750 7 8\n"
    machine.succeed(f"rundlet rm --force {sandbox}", "node-api DELETE /v1/images/tree:latest")

with subtest("what the units may do is little"):
    # What the daemon keeps and why is in nixos-module/hardening.nix.
    for unit in ("rundlet-pool.service", "rundlet-store.service", "rundlet.service"):
        rated = machine.succeed(f"systemd-analyze security --no-pager {unit} | cat")
        exposure = float(re.search(r"exposure level for \S+: ([\d.]+)", rated)[1])
        machine.succeed(f"echo exposure of {unit}: {exposure}")
        assert exposure <= 3.0, rated
