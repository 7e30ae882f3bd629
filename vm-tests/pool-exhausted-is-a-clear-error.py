# More sandboxes than slots: the one too many is refused at once (or waits for a bounded time, as configured), with an error that
# says what is used up and what to do; who was there is not touched, and the next one after a removal gets the slot.
import json

machine.succeed("rundlet template build --memory 128 debian base", "node-api start '{\"cgroup\":{\"slots\":2}}'")
wish = '{"source":{"template":"base"}}'


def create():
    return json.loads(machine.succeed(f"node-api POST /v1/sandboxes '{wish}'"))["id"]


first, second = create(), create()

with subtest("the third is refused, with a reason and an advice"):
    status, text = machine.execute(f"node-api POST /v1/sandboxes '{wish}'")
    problem = json.loads(text)
    assert status == 22 and problem["status"] == 503, text
    assert "limits.sandboxes" in problem["detail"] and "2" in problem["detail"] and problem["type"].endswith("full"), problem

with subtest("nothing of it was left, and the others answer"):
    listed = json.loads(machine.succeed("node-api GET /v1/sandboxes"))["sandboxes"]
    assert {it["id"] for it in listed if it["phase"] not in ("failed", "stopped")} == {first, second}, listed
    assert len(machine.succeed("pgrep '^vmm-'").split()) == 2
    for one in (first, second):
        assert machine.succeed(f"rundlet exec {one} -- hostname").strip() == one

with subtest("a removal makes room"):
    machine.succeed(f"node-api DELETE '/v1/sandboxes/{first}?force=true'")
    machine.wait_until_succeeds(f"node-api POST /v1/sandboxes '{wish}' >/tmp/third", timeout=60)
    third = json.loads(machine.succeed("cat /tmp/third"))["id"]

with subtest("configured to wait, it waits for a slot, and no longer than that"):
    machine.succeed("node-api stop", "node-api start '{\"cgroup\":{\"slots\":2,\"wait_ms\":20000}}'")
    machine.succeed(f"(setsid node-api POST /v1/sandboxes '{wish}' >/tmp/fourth 2>&1 </dev/null &); sleep 2; test ! -s /tmp/fourth")
    machine.succeed(f"node-api DELETE '/v1/sandboxes/{second}?force=true'")
    machine.wait_until_succeeds("grep -q ready /tmp/fourth", timeout=60)
    status, text = machine.execute(f"node-api POST /v1/sandboxes '{wish}'")
    assert status == 22 and json.loads(text)["status"] == 503 and "limits.sandboxes" in json.loads(text)["detail"], text

with subtest("too little memory left to commit is another reason"):
    machine.succeed("node-api stop", "node-api start '{\"limits\":{\"memory_mib\":300}}'")
    status, text = machine.execute(f"node-api POST /v1/sandboxes '{wish}'")
    assert status == 22 and "memory" in json.loads(text)["detail"], text

for one in json.loads(machine.succeed("node-api GET /v1/sandboxes"))["sandboxes"]:
    machine.succeed(f"node-api DELETE '/v1/sandboxes/{one['id']}?force=true'")
machine.succeed("node-api stop; pkill vhost-blk-ro || true; rundlet template rm base")
