# `rundlet bench node` measures a daemon of its own beside a fleet, and leaves no daemon, sandbox, file or cgroup behind,
# however it ends.
# timeout: 900
import json

ROOT = "/sys/fs/cgroup/rundlet-bench-node"
machine.succeed("rundlet template build --memory 128 debian base")
leftovers = f"leftovers | grep -v -e '^store MiB' -e /digests/; ls -d {ROOT} 2>/dev/null || true"
machine.succeed("rundlet bench start --count 1 --concurrency 1 --settle 0 --template base >/dev/null")
before = machine.succeed(leftovers)


def nothing_is_left():
    for _ in range(30):
        now = machine.succeed(leftovers)
        if now == before:
            return
        machine.sleep(1)
    raise AssertionError("left behind: " + "; ".join(sorted(set(now.splitlines()) - set(before.splitlines()))))


with subtest("starts in turns and in a row, by both"):
    words = "--pairs 2 --count 8 --alive 3 --at-once 2 --settle 2 --json /tmp/node.json"
    table = machine.succeed(f"rundlet bench node --template base {words}", timeout=400)
    report = json.loads(machine.succeed("cat /tmp/node.json"))
    assert [it["name"] for it in report["systems"]] == ["rundlet", "daemon"], report
    for system in report["systems"]:
        row = system["start"][0]
        assert (row["ready"], row["failed"]) == (2, 0) and row["process_cpu_ms"] > 0, system
    for row in report["sustained"]:
        assert (row["ready"], row["failed"]) == (8, 0) and row["starts_per_s"] > 0 and row["process_cpu_ms"] > 0, row
    assert "start_ms_p50" in report["overhead"], report
    assert "the daemon's part" in table and "in a row" in table, table
    nothing_is_left()

with subtest("SIGKILL while sandboxes of its daemon live, and others are on their way"):
    machine.succeed("(setsid rundlet bench node --template base --pairs 0 --count 60 --settle 0 >/tmp/out 2>&1 & echo $! >/tmp/pid)")
    slots = f"cat {ROOT}/slot-*/cgroup.procs 2>/dev/null | wc -l"
    machine.wait_until_succeeds(f"test $({slots}) -ge 3", timeout=400)
    machine.succeed("pkill -KILL -f '[r]undlet bench node'")
    nothing_is_left()

with subtest("twin: a cgroup that is there already is left alone"):
    machine.succeed(f"mkdir {ROOT}")
    said = machine.fail("rundlet bench node --template base --pairs 1 --count 0 --settle 0 2>&1")
    assert "is there already" in said, said
    machine.succeed(f"rmdir {ROOT}")

machine.succeed("rundlet template rm base")
