# What block backends do is in the daemon's /metrics, also of one that an earlier daemon has started; the sandbox has no way to
# where it is told.
import json
import re

machine.succeed("node-api start")
made = json.loads(machine.succeed("node-api POST /v1/sandboxes '{\"source\":{\"image\":\"debian\"},\"memory_mib\":128}'"))


def figures():
    text = machine.succeed("node-api GET /metrics")
    found = re.findall(r'^rundlet_backend_(\w+)_total\{kind="image",source="debian"\} (\d+)$', text, re.MULTILINE)
    return {name: int(value) for name, value in found}


def sh(script):
    return machine.succeed(f"rundlet exec {made['id']} -- sh -c '{script}'")


with subtest("reads of the root disk and writes of the scratch disk are counted"):
    before = figures()
    assert before["reads"] > 0 and before["errors"] == 0, before
    assert before["cache_hits"] + before["cache_misses"] > 0, before
    # Nothing that is thrown away is synced (`volatile`): what goes through the page cache may stay there for half a minute.
    sh("cat /usr/bin/* >/dev/null; dd if=/dev/zero of=/file bs=1M count=8 oflag=direct")
    after = figures()
    assert after["reads"] > before["reads"] and after["read_bytes"] >= before["read_bytes"] + (1 << 20), (before, after)
    assert after["writes"] > before["writes"] and after["written_bytes"] >= before["written_bytes"] + (8 << 20), (before, after)

with subtest("another daemon goes on with them"):
    machine.succeed("kill -KILL $(cat /tmp/rundlet-serve.pid)")
    machine.succeed("node-api start")
    again = figures()
    assert all(again[name] >= after[name] for name in after), (after, again)

with subtest("twin: a user of the range that backends and sandboxes are in is not told"):
    (socket,) = machine.succeed("ls /run/rundlet/serve/lines/*/figures.sock").split()
    asked = "import socket as s; c = s.socket(s.AF_UNIX); c.connect(\"%s\"); print(c.makefile().readline())" % socket
    assert json.loads(machine.succeed(f"python3 -c '{asked}'"))["reads"] >= again["reads"]
    said = machine.fail(f"setpriv --reuid 200001 --regid 200001 --clear-groups python3 -c '{asked}' 2>&1")
    assert "PermissionError" in said, said

machine.succeed(f"node-api DELETE '/v1/sandboxes/{made['id']}?force=true'", "node-api stop; pkill vhost-blk-ro || true")
