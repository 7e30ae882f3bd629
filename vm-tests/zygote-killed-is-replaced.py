# The zygote of a template may be killed: the clones it made live on, and the next clone comes from another zygote.
import json

machine.succeed("rundlet template build --memory 128 debian base", "node-api start")


def create():
    return json.loads(machine.succeed("node-api POST /v1/sandboxes '{\"source\":{\"template\":\"base\"}}'"))["id"]


first = create()
zygote = machine.succeed("pgrep -x rundlet-zygote").split()
machine.succeed(f"rundlet exec {first} -- true")

with subtest("SIGKILL for the zygote: its clone answers"):
    machine.succeed("pkill -KILL -x rundlet-zygote")
    assert machine.succeed(f"rundlet exec {first} -- hostname").strip() == first

with subtest("the next clone has another one"):
    second = create()
    assert machine.succeed(f"rundlet exec {second} -- hostname").strip() == second
    now = machine.succeed("pgrep -x rundlet-zygote").split()
    assert now and not set(now) & set(zygote), (zygote, now)

with subtest("it was told as an event"):
    events = machine.execute("curl -sN --max-time 3 --unix-socket /run/rundlet/api.sock 'http://localhost/v1/events?since=0'")[1]
    assert any(json.loads(line)["event"] == "zygote_lost" for line in events.splitlines() if line), events

with subtest("killed while it makes clones: each create is answered, and those that say ready are"):
    machine.succeed("(setsid node-api burst 12 6 '{\"source\":{\"template\":\"base\"}}' >/tmp/burst.out 2>&1 </dev/null &)")
    machine.succeed("for i in 1 2 3; do sleep 0.7; pkill -KILL -x rundlet-zygote || true; done")
    machine.wait_until_succeeds("test $(wc -l </tmp/burst.out) -eq 12", timeout=240)
    answers = [json.loads(line) for line in machine.succeed("cat /tmp/burst.out").splitlines()]
    for answer in answers:
        if answer["status"] == 201:
            assert machine.succeed(f"rundlet exec {answer['id']} -- hostname").strip() == answer["id"]
        else:
            assert answer["detail"], answer
    assert any(answer["status"] == 201 for answer in answers), answers

for one in json.loads(machine.succeed("node-api GET /v1/sandboxes"))["sandboxes"]:
    machine.succeed(f"node-api DELETE '/v1/sandboxes/{one['id']}?force=true'")
machine.succeed("node-api stop; pkill vhost-blk-ro || true; rundlet template rm base")
