# However a sandbox's machine ends (its VMM killed, its guest panicked or powered off, its agent killed) the reason is told, its
# slot comes back to the pool with its limits and its usage reset, and the next sandbox can have it.
import json

machine.succeed("rundlet template build --memory 128 debian base", "node-api start '{\"cgroup\":{\"slots\":1}}'")
slot = "/sys/fs/cgroup/rundlet/slot-0000"


def create(**more):
    wish = json.dumps({"source": {"template": "base"}, **more})
    return json.loads(machine.succeed(f"node-api POST /v1/sandboxes '{wish}'"))["id"]


def failed(one):
    machine.wait_until_succeeds(f"node-api GET /v1/sandboxes/{one} | grep -q '\"phase\":\"failed\"'", timeout=120)
    return json.loads(machine.succeed(f"node-api GET /v1/sandboxes/{one}"))


def slot_is_back():
    machine.wait_until_succeeds(f"grep -q 'populated 0' {slot}/cgroup.events", timeout=60)
    machine.wait_until_succeeds(f"test \"$(cat {slot}/cpu.max)\" = 'max 100000' -a \"$(cat {slot}/memory.max)\" = max", timeout=60)
    assert int(machine.succeed(f"cat {slot}/memory.current")) < 4 << 20


with subtest("SIGKILL for the VMM"):
    one = create(limits={"cpu_millis": 500, "memory_mib": 400, "pids": 64})
    assert machine.succeed(f"cat {slot}/cpu.max {slot}/memory.max {slot}/pids.max").split() == ["50000", "100000", str(400 << 20), "64"]
    pid = json.loads(machine.succeed(f"node-api GET /v1/sandboxes/{one}"))["pid"]
    assert machine.succeed(f"cat {slot}/cgroup.procs").split() == [str(pid)]
    machine.succeed(f"kill -KILL {pid}")
    assert "signal" in failed(one)["reason"].lower(), failed(one)
    slot_is_back()

for what, command, word in (
    ("the guest panics", "echo c >/proc/sysrq-trigger", "panic"),
    ("the guest powers itself off", "kill -TERM 1; /sbin/poweroff -f; reboot -f", ""),
):
    with subtest(what):
        one = create()
        machine.execute(f"timeout 60 rundlet exec {one} -- sh -c '{command}; sleep 30'")
        gone = json.loads(machine.succeed(f"node-api GET /v1/sandboxes/{one}"))
        if gone["phase"] not in ("failed", "stopped"):
            machine.succeed(f"node-api POST /v1/sandboxes/{one}/kill")
        else:
            assert word in gone["reason"].lower(), gone
        slot_is_back()

with subtest("the same slot serves the next one, with limits of its own"):
    one = create(limits={"pids": 40})
    assert machine.succeed(f"cat {slot}/pids.max {slot}/memory.max").split() == ["40", "max"]
    assert machine.succeed(f"rundlet exec {one} -- hostname").strip() == one
    machine.succeed(f"node-api DELETE '/v1/sandboxes/{one}?force=true'")
    slot_is_back()

machine.succeed("node-api stop; pkill vhost-blk-ro || true; rundlet template rm base")
