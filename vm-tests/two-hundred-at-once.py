# Two hundred clones of one template, started at once in one process: all become ready, each runs a command and is itself,
# and nothing is left of any of them.
# worker: fresh
# timeout: 1800
import json

count = 200
machine.succeed("rundlet template build --memory 128 debian base")
leftovers = "leftovers | grep -v '^store MiB'"
before = machine.succeed(leftovers)


def nothing_is_left():
    for _ in range(60):
        after = machine.succeed(leftovers)
        if after == before:
            return
        machine.sleep(1)
    raise AssertionError(set(after.splitlines()) ^ set(before.splitlines()))


with subtest("all are ready, and each answers with its own name and ids"):
    shown = machine.succeed(
        f"rundlet fleet --template base --count {count} --at-once {count} --timeout 600 -- "
        "sh -c 'hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id'",
        timeout=1500,
    )
    lines = [json.loads(line) for line in shown.splitlines()]
    started = [line["started"] for line in lines if "started" in line]
    assert [(it["ready"], it["failed"]) for it in started] == [(count, 0)], started
    ran = [line["command"] for line in lines if "command" in line]
    assert len(ran) == count and all(it["code"] == 0 and it["stderr"] == "" for it in ran), ran[:3]
    answers = [it["stdout"].split() for it in ran]
    assert all(answer[0] == it["id"] for answer, it in zip(answers, ran)), answers[:3]
    for place in range(3):
        assert len({answer[place] for answer in answers}) == count, place
    assert len({it["pid"] for it in ran}) == count

with subtest("twin: nothing else was printed, and no clone was made twice"):
    assert len(lines) == count + 1, [line for line in lines if "command" not in line]

with subtest("nothing is left"):
    nothing_is_left()

with subtest("SIGKILL for the node in the middle of it: nothing is left either"):
    machine.succeed(
        f"(setsid rundlet fleet --template base --count {count} --at-once 20 -- true >/tmp/fleet.out 2>&1) >/dev/null 2>&1 &"
    )
    machine.wait_until_succeeds("test $(pgrep -c '^vmm-') -ge 40", timeout=300)
    machine.succeed("pkill -KILL -x rundlet")
    nothing_is_left()
