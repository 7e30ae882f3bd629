# worker: fresh
# The pool of cgroups is ready when its unit says so, before there is a daemon: with all slots, their controllers, and its keeper
# beside them. Its unit is never restarted by a switch, and the daemon's first sandbox finds it as it is.

import json

POOL = "rundlet-pool.service"


def shown(unit, name):
    return machine.succeed(f"systemctl show --value --property {name} {unit}").strip()


def words(path):
    return machine.succeed(f"cat {path}").split()


with subtest("a boot starts it, and then the daemon"):
    machine.succeed("module-units install", "module-units start")
    command = machine.succeed(f"systemctl cat {POOL} | sed -n 's/^ExecStart=//p'").split()
    config = json.loads(machine.succeed(f"cat {command[command.index('--config') + 1]}"))["cgroup"]
    root = config["root"]
    began = [int(shown("rundlet.service", "ExecMainStartTimestampMonotonic")), int(shown(POOL, "ActiveEnterTimestampMonotonic"))]
    assert began[0] >= began[1] > 0, began

with subtest("every slot is there and empty, with the controllers that limits need"):
    slots = machine.succeed(f"ls -d {root}/slot-*").split()
    assert slots == [f"{root}/slot-{number:04}" for number in range(config["slots"])], slots
    for slot in (slots[0], slots[-1]):
        assert {"cpu", "io", "memory", "pids"} <= set(words(f"{slot}/cgroup.controllers"))
        assert words(f"{slot}/cgroup.procs") == []

with subtest("its keeper is beside them, so that none of them holds it"):
    assert words(f"{root}/keeper/cgroup.procs") == [shown(POOL, "MainPID")]
    assert words(f"{root}/cgroup.procs") == []

with subtest("no limit of the pool's own is in the way of many sandboxes"):
    assert words(f"{root}/pids.max") == ["max"]

with subtest("a switch does not restart it"):
    machine.succeed(f"systemctl cat {POOL} | grep -qx X-RestartIfChanged=false")

with subtest("the daemon takes a slot of it and makes none"):
    before = machine.succeed(f"stat -c '%n %i' {root}/slot-*")
    sandbox = machine.succeed("rundlet create --memory 128 debian", timeout=300).strip()
    pid = json.loads(machine.succeed(f"rundlet inspect {sandbox}"))["pid"]
    assert machine.succeed(f"cat /proc/{pid}/cgroup").strip().removeprefix("0::") in {
        slot.removeprefix("/sys/fs/cgroup") for slot in slots
    }
    assert machine.succeed(f"stat -c '%n %i' {root}/slot-*") == before
    machine.succeed(f"rundlet rm --force {sandbox}")
