# A sandbox's process is born in its slot of the pool: nobody ever writes to a slot's cgroup.procs or cgroup.threads, for clones
# and for cold boots, and all its threads are in the slot.
import json

machine.succeed("rundlet template build --memory 128 debian base")
machine.succeed(
    "(setsid strace -f -qq -e trace=openat,clone3 -o /tmp/trace rundlet serve --config /dev/stdin >/tmp/serve.log 2>&1 "
    "<<<'{\"cgroup\":{\"root\":\"/sys/fs/cgroup/rundlet\",\"slots\":8}}' &)"
)
machine.wait_until_succeeds("node-api GET /v1/health", timeout=120)
machine.succeed("echo mark >/tmp/mark; cat /tmp/mark >/dev/null")

with subtest("a clone and a boot, each in a slot with all its threads"):
    for source in ({"template": "base"}, {"image": "debian"}):
        one = json.loads(machine.succeed(f"node-api POST /v1/sandboxes '{json.dumps({'source': source})}'"))
        found = json.loads(machine.succeed(f"node-api GET /v1/sandboxes/{one['id']}"))
        slot = "/sys/fs/cgroup/" + found["cgroup"]
        assert "/slot-" in slot, slot
        threads = machine.succeed(f"cat {slot}/cgroup.threads").split()
        assert set(threads) == set(machine.succeed(f"ls /proc/{found['pid']}/task").split()), threads
        assert machine.succeed(f"cat {slot}/cgroup.procs").split() == [str(found["pid"])]

with subtest("the process was made with CLONE_INTO_CGROUP, and nothing was moved"):
    trace = machine.succeed("cat /tmp/trace")
    births = [line for line in trace.splitlines() if "clone3(" in line and "CLONE_INTO_CGROUP" in line]
    assert len(births) >= 2, len(births)
    moved = [line for line in trace.splitlines() if "slot-" in line and ("cgroup.procs" in line or "cgroup.threads" in line) and "O_RDONLY" not in line]
    assert not moved, moved

for one in json.loads(machine.succeed("node-api GET /v1/sandboxes"))["sandboxes"]:
    machine.succeed(f"node-api DELETE '/v1/sandboxes/{one['id']}?force=true'")
machine.succeed("pkill -x rundlet; pkill vhost-blk-ro || true; sleep 1; rundlet template rm base; rm -f /tmp/trace")
