# A sandbox's limits hold: one that wants more memory than its cgroup may have is killed inside of it, one that wants all the
# CPU has its quota, a fork bomb in the guest stays in the guest; a neighbour does not notice.
import json

machine.succeed("rundlet template build --memory 128 debian base")
# A daemon that is exempt from death by memory shortage, which its sandboxes must not be.
machine.succeed("choom -n -1000 -- node-api start")


def create(source="template", name="base", **more):
    wish = json.dumps({"source": {source: name}, **more})
    return json.loads(machine.succeed(f"node-api POST /v1/sandboxes '{wish}'"))


def cgroup(one):
    return "/sys/fs/cgroup/" + json.loads(machine.succeed(f"node-api GET /v1/sandboxes/{one['id']}"))["cgroup"]


neighbour = create()

with subtest("a memory hog is killed, and the reason says so"):
    # The API refuses a limit below what the guest may touch, so it is lowered from outside.
    hog = create()
    pid = json.loads(machine.succeed(f"node-api GET /v1/sandboxes/{hog['id']}"))["pid"]
    assert machine.succeed(f"cat /proc/{pid}/oom_score_adj").strip() == "500"
    machine.succeed(f"echo $((40 << 20)) >{cgroup(hog)}/memory.max")
    machine.execute(f"timeout 120 rundlet exec {hog['id']} -- python3 -c 'x = bytearray(90 << 20); print(len(x))'")
    machine.wait_until_succeeds(f"node-api GET /v1/sandboxes/{hog['id']} | grep -q '\"phase\":\"failed\"'", timeout=120)
    reason = json.loads(machine.succeed(f"node-api GET /v1/sandboxes/{hog['id']}"))["reason"]
    assert "memory" in reason, reason

with subtest("a limit below the guest's memory is refused, by field"):
    status, text = machine.execute(
        "node-api POST /v1/sandboxes '{\"source\":{\"template\":\"base\"},\"limits\":{\"memory_mib\":64}}'"
    )
    assert status == 22 and "limits.memory_mib" in text, text

with subtest("a CPU hog has its quota, within a tenth"):
    spinner = create(limits={"cpu_millis": 250})
    machine.succeed(f"rundlet exec {spinner['id']} -- sh -c '(while :; do :; done) >/dev/null 2>&1 &'")
    where = cgroup(spinner)
    machine.sleep(3)
    used = machine.succeed(
        f"a=$(awk '/^usage_usec/{{print $2}}' {where}/cpu.stat); s=$(date +%s%N); sleep 20; "
        f"b=$(awk '/^usage_usec/{{print $2}}' {where}/cpu.stat); e=$(date +%s%N); echo $((b - a)) $(((e - s) / 1000))"
    ).split()
    share = int(used[0]) / int(used[1])
    assert 0.225 <= share <= 0.275, share
    assert int(machine.succeed(f"awk '/^nr_throttled/{{print $2}}' {where}/cpu.stat")) > 0

with subtest("twin: without a quota it takes more"):
    free = create()
    machine.succeed(f"rundlet exec {free['id']} -- sh -c '(while :; do :; done) >/dev/null 2>&1 &'")
    where = cgroup(free)
    used = machine.succeed(
        f"a=$(awk '/^usage_usec/{{print $2}}' {where}/cpu.stat); sleep 10; awk -v a=$a '/^usage_usec/{{print $2 - a}}' {where}/cpu.stat"
    )
    assert int(used) > 4_000_000, used
    machine.succeed(f"node-api DELETE '/v1/sandboxes/{free['id']}?force=true'")

with subtest("a fork bomb in a guest is stopped there: the host has no process more"):
    bomb = create(limits={"pids": 64, "cpu_millis": 500})
    before = int(machine.succeed("ls -d /proc/[0-9]* | wc -l"))
    machine.execute(f"timeout 20 rundlet exec {bomb['id']} -- sh -c 'b() {{ b | b & }}; b; sleep 15'")
    assert int(machine.succeed("ls -d /proc/[0-9]* | wc -l")) <= before + 10
    assert int(machine.succeed(f"cat {cgroup(bomb)}/pids.current")) <= 64

with subtest("threads of a VMM are bounded, too"):
    assert machine.succeed(f"cat {cgroup(bomb)}/pids.max").strip() == "64"

with subtest("the neighbour answers"):
    assert machine.succeed(f"rundlet exec {neighbour['id']} -- hostname").strip() == neighbour["id"]

for one in json.loads(machine.succeed("node-api GET /v1/sandboxes"))["sandboxes"]:
    machine.succeed(f"node-api DELETE '/v1/sandboxes/{one['id']}?force=true'")
machine.succeed("node-api stop; pkill vhost-blk-ro || true; rundlet template rm base")
