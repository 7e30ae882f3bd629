# A thousand creates at once: each is answered, either with a ready sandbox or with a refusal that says why, as many are ready as there are
# slots, the list is there all the while, and afterwards the node is as good as before.
# worker: fresh
# timeout: 1800
import json

slots = 24
machine.succeed(
    "rundlet template build --memory 128 debian base",
    f"node-api start '{{\"cgroup\":{{\"slots\":{slots}}},\"limits\":{{\"starts_at_once\":4,\"start_queue\":100,\"start_deadline_s\":900}}}}'",
)

with subtest("a thousand at once, and lists meanwhile"):
    shown = machine.succeed(
        "node-api listen-while node-api burst 1000 1000 '{\"source\":{\"template\":\"base\"}}' >/tmp/burst; cat /tmp/burst",
        timeout=1500,
    )
    lines = [json.loads(line) for line in shown.splitlines()]
    answers = [line for line in lines if "status" in line]
    assert len(answers) == 1000, len(answers)
    ready = [it for it in answers if it["status"] == 201]
    refused = [it for it in answers if it["status"] != 201]
    assert len(ready) == slots, len(ready)
    assert all(it["status"] == 503 and it["detail"] for it in refused), [it for it in refused if it["status"] != 503][:3]
    waits = [line for line in lines if "longest_s" in line]
    assert waits and waits[0]["lists"] > 3, waits
    print(waits)

with subtest("the queue's bound was kept: those over it were told at once that it is full"):
    assert any("queue" in it["detail"] for it in refused), refused[:3]

with subtest("the ready ones answer, the list is right, nothing is half-made"):
    listed = json.loads(machine.succeed("node-api GET /v1/sandboxes"))["sandboxes"]
    alive = {it["id"] for it in listed if it["phase"] == "ready"}
    assert alive == {it["id"] for it in ready}, len(alive)
    assert len(machine.succeed("pgrep '^vmm-'").split()) == slots
    for one in ready[:3]:
        assert machine.succeed(f"rundlet exec {one['id']} -- hostname").strip() == one["id"]

with subtest("and the next create after room was made works"):
    for one in ready:
        machine.succeed(f"node-api DELETE '/v1/sandboxes/{one['id']}?force=true'")
    machine.wait_until_succeeds("node-api POST /v1/sandboxes '{\"source\":{\"template\":\"base\"}}'", timeout=60)
