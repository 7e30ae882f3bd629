# The daemon may be killed at any moment: its sandboxes run on, the next daemon finds them again and can do with them what the
# first one could, and what it was in the middle of making is gone without a trace.
# timeout: 900
import json

machine.succeed("modprobe -a kvm-amd 2>/dev/null; rundlet template build --memory 128 debian base")
machine.succeed("node-api start")
daemon = "$(cat /tmp/rundlet-serve.pid)"


def api(method, path, body=None):
    given = f" '{json.dumps(body)}'" if body is not None else ""
    return json.loads(machine.succeed(f"node-api {method} {path}{given}").strip() or "null")


def listed():
    return {it["id"]: it["phase"] for it in api("GET", "/v1/sandboxes")["sandboxes"]}


with subtest("a clone and a booted one, each in the middle of something"):
    clone = api("POST", "/v1/sandboxes", {"source": {"template": "base"}, "labels": {"kind": "clone"}})
    booted = api("POST", "/v1/sandboxes", {"source": {"image": "debian"}, "memory_mib": 128, "labels": {"kind": "booted"}})
    ids = [clone["id"], booted["id"]]
    assert [clone["phase"], booted["phase"]] == ["ready", "ready"], (clone, booted)
    for one in ids:
        machine.succeed(f"rundlet exec {one} -- sh -c 'echo before >/root/mark; (sleep 1000 >/dev/null 2>&1 & echo $! >/root/pid)'")
    pids = {one: api("GET", f"/v1/sandboxes/{one}")["pid"] for one in ids}

with subtest("SIGKILL for the daemon: the machines run on"):
    machine.succeed(f"kill -KILL {daemon}")
    machine.wait_until_fails(f"test -e /proc/{daemon}", timeout=30)
    for pid in pids.values():
        machine.succeed(f"test -e /proc/{pid} && ! grep -q '^State:.*zombie' /proc/{pid}/status")

with subtest("the next daemon has them, with their names, labels and processes"):
    machine.succeed("node-api start")
    assert set(listed()) == set(ids), listed()
    for one in ids:
        found = api("GET", f"/v1/sandboxes/{one}")
        assert found["recovered"] and found["pid"] == pids[one] and found["phase"] in ("ready", "running"), found
        assert machine.succeed(f"rundlet exec {one} -- sh -c 'cat /root/mark; cat /proc/$(cat /root/pid)/comm'").split() == ["before", "sleep"]
    assert [it["id"] for it in api("GET", "/v1/sandboxes?label=kind=clone")["sandboxes"]] == [clone["id"]]

with subtest("new ones can be made beside them, from the same template"):
    third = api("POST", "/v1/sandboxes", {"source": {"template": "base"}})
    assert machine.succeed(f"rundlet exec {third['id']} -- hostname").strip() == third["id"]
    api("DELETE", f"/v1/sandboxes/{third['id']}?force=true")

with subtest("killed in the middle of starts, ten times: nothing half-made stays, nothing is lost"):
    for turn in range(10):
        machine.succeed(
            "(setsid node-api burst 4 4 '{\"source\":{\"template\":\"base\"}}' >/tmp/burst.out 2>&1 </dev/null &); "
            f"sleep 0.{turn}; kill -KILL {daemon}; while test -e /proc/{daemon}; do sleep 0.1; done",
            "node-api start",
        )
        now = listed()
        assert set(ids) <= set(now) and all(now[one] in ("ready", "running") for one in ids), now
        assert all(phase in ("ready", "running", "failed") for phase in now.values()), now
        for one in set(now) - set(ids):
            if now[one] != "failed":
                assert machine.succeed(f"rundlet exec {one} -- hostname").strip() == one
            api("DELETE", f"/v1/sandboxes/{one}?force=true")

with subtest("a machine that died while no daemon was there is told as failed"):
    machine.succeed(f"kill -KILL {daemon}; kill -KILL {pids[clone['id']]}; sleep 1", "node-api start")
    gone = api("GET", f"/v1/sandboxes/{clone['id']}")
    assert gone["phase"] == "failed" and gone["reason"], gone
    assert listed()[booted["id"]] in ("ready", "running")

with subtest("all removed: no process, no slot in use, no file"):
    for one in ids:
        api("DELETE", f"/v1/sandboxes/{one}?force=true")
    machine.wait_until_fails("pgrep '^vmm-'", timeout=60)
    machine.wait_until_succeeds("! grep -l 'populated 1' /sys/fs/cgroup/rundlet/slot-*/cgroup.events", timeout=60)
    assert machine.succeed("ls /run/rundlet/serve/s").split() == []
    machine.succeed("node-api stop; pkill vhost-blk-ro; rundlet template rm base")
