# worker: fresh
# A sandbox lives through a restart of its daemon's unit, and through the daemon's death: the same process in the same cgroup,
# found again, with what it had written. When it is removed, its slot is empty.

import json
import re


def shown(unit, name):
    return machine.succeed(f"systemctl show --value --property {name} {unit}").strip()


def answers():
    machine.wait_until_succeeds("rundlet ps", timeout=120)


def is_the_same():
    now = json.loads(machine.succeed(f"rundlet inspect {sandbox}"))
    assert (now["pid"], now["cgroup"]) == (before["pid"], before["cgroup"]), (before, now)
    assert now["phase"] in ("ready", "running") and now["recovered"], now
    assert machine.succeed(f"rundlet exec {sandbox} -- cat /tmp/mark") == "still here\n"


machine.succeed("module-units install", "module-units start")
sandbox = machine.succeed("rundlet create --memory 128 debian", timeout=300).strip()
machine.succeed(f"rundlet exec {sandbox} -- sh -c 'echo still here >/tmp/mark'")
before = json.loads(machine.succeed(f"rundlet inspect {sandbox}"))
assert not before["recovered"], before

with subtest("a restart of the daemon"):
    first = shown("rundlet.service", "MainPID")
    machine.succeed("systemctl restart rundlet.service")
    second = shown("rundlet.service", "MainPID")
    assert second not in ("0", first)
    is_the_same()

with subtest("its death"):
    machine.succeed(f"kill -KILL {second}")
    machine.wait_until_succeeds("test $(systemctl show --value --property MainPID rundlet.service) -gt 0", timeout=120)
    answers()
    assert shown("rundlet.service", "MainPID") != second
    is_the_same()

with subtest("its slot is empty when it is removed"):
    place = before["cgroup"]
    assert re.search(r"/rundlet-pool.service/slot-\d{4}$", place), place
    events = "/sys/fs/cgroup/" + place.removeprefix("/sys/fs/cgroup").lstrip("/") + "/cgroup.events"
    machine.succeed(f"grep -q 'populated 1' {events}")
    machine.succeed(f"rundlet rm --force {sandbox}")
    machine.wait_until_succeeds(f"grep -q 'populated 0' {events}", timeout=60)
