# When a template's zygote is killed, its clones live on and do their work, the node says so, and the next clone starts
# another zygote.
import json

machine.succeed("rundlet template build --memory 128 debian base")
leftovers = "leftovers | grep -v '^store MiB'"
before = machine.succeed(leftovers)
machine.succeed("rm -f /tmp/rounds /tmp/fleet; mkfifo /tmp/rounds")
machine.succeed(
    "(setsid rundlet fleet --template base --count 3 --stay -- sh -c 'echo x >>/rounds; hostname; wc -l </rounds' "
    "</tmp/rounds >/tmp/fleet 2>&1; echo ended $? >>/tmp/fleet) >/dev/null 2>&1 & "
    "(exec setsid sleep 1000 >/tmp/rounds) >/dev/null 2>&1 & echo $! >/tmp/holder"
)


def round_of(commands):
    """The lines so far, once so many commands were run."""
    machine.wait_until_succeeds(f"test $(grep -c '\"command\"' /tmp/fleet) = {commands}", timeout=240)
    lines = [json.loads(line) for line in machine.succeed("cat /tmp/fleet").splitlines()]
    return (
        [line["started"] for line in lines if "started" in line],
        [line["command"] for line in lines if "command" in line],
        [line["event"]["what"] for line in lines if "event" in line],
    )


with subtest("three clones of one zygote"):
    (first,), ran, events = round_of(3)
    assert first["ready"] == 3 and events == [], (first, events)
    assert {it["stdout"].split()[1] for it in ran} == {"1"}, ran
    children = machine.succeed(f"pgrep -P {first['zygote']}").split()
    assert sorted(children) == sorted(str(it["pid"]) for it in ran), (children, ran)

with subtest("the zygote is killed: the node says so, and the clones are there"):
    machine.succeed(f"kill -KILL {first['zygote']}")
    machine.wait_until_succeeds("grep -q 'zygote has died' /tmp/fleet", timeout=30)
    for it in ran:
        machine.succeed(f"test -d /proc/{it['pid']}")

with subtest("the next round: another zygote makes three more, and the first three still work, with all they had written"):
    machine.succeed("echo >/tmp/rounds")
    started, again, events = round_of(9)
    assert len(started) == 2 and started[1]["ready"] == 3, started
    assert started[1]["zygote"] not in (None, first["zygote"]) and started[1]["backend"] == first["backend"], started
    counts = {it["id"]: it["stdout"].split()[1] for it in again[3:]}
    assert counts == {**{it["id"]: "2" for it in ran}, "c0003": "1", "c0004": "1", "c0005": "1"}, counts
    assert len(events) == 1, events

with subtest("twin: a clone that is killed is not survived, it is told"):
    machine.succeed(f"kill -KILL {again[-1]['pid']}")
    machine.wait_until_succeeds(f"grep -q 'clone {again[-1]['id']} has ended' /tmp/fleet", timeout=30)

with subtest("the node ends, and so do the orphans of the first zygote"):
    machine.succeed("kill $(cat /tmp/holder)")
    machine.wait_until_succeeds("grep -q '^ended' /tmp/fleet", timeout=120)
    machine.succeed("rm -f /tmp/rounds /tmp/holder /tmp/fleet")
    for _ in range(30):
        after = machine.succeed(leftovers)
        if after == before:
            break
        machine.sleep(1)
    assert after == before, set(after.splitlines()) ^ set(before.splitlines())

machine.succeed("rundlet template rm base")
