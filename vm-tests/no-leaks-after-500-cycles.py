# Five hundred sandboxes made and removed: the daemon, the backend and the zygote have the descriptors, threads and memory that they had
# after the first tenth, and there is no file, mount, cgroup or process more.
# worker: fresh
# timeout: 2400
import json

machine.succeed("rundlet template build --memory 128 debian base", "node-api start '{\"cgroup\":{\"slots\":8}}'")
wish = '{"source":{"template":"base"}}'


def cycles(count):
    machine.succeed(f"node-api cycles {count} 4 '{wish}'", timeout=2000)


def measure():
    machine.wait_until_succeeds("! grep -l 'populated 1' /sys/fs/cgroup/rundlet/slot-*/cgroup.events", timeout=60)
    machine.sleep(3)
    result = {}
    for name in ("rundlet", "rundlet-zygote", "vhost-blk-ro"):
        for pid in machine.succeed(f"pgrep -x {name}").split():
            result[f"{name} fds"] = result.get(f"{name} fds", 0) + int(machine.succeed(f"ls /proc/{pid}/fd | wc -l"))
            result[f"{name} threads"] = result.get(f"{name} threads", 0) + int(machine.succeed(f"ls /proc/{pid}/task | wc -l"))
            rss = int(machine.succeed(f"awk '/^VmRSS/{{print $2}}' /proc/{pid}/status"))
            result[f"{name} rss KiB"] = result.get(f"{name} rss KiB", 0) + rss
    result["files"] = int(machine.succeed("find /run/rundlet /var/lib/rundlet | wc -l"))
    result["mounts"] = int(machine.succeed("wc -l </proc/self/mounts"))
    result["cgroups"] = int(machine.succeed("find /sys/fs/cgroup -type d | wc -l"))
    result["processes"] = int(machine.succeed("ps -e --no-headers | grep -v -e kworker | wc -l"))
    return result


count = 500
cycles(count // 10)
before = measure()
cycles(count - count // 10)
after = measure()
print(f"{count} sandboxes")
print(before, after)

with subtest("nothing has grown"):
    for name, value in before.items():
        if name.endswith("rss KiB"):
            # Allocators keep a little; what leaked that often would show.
            assert after[name] <= value + 4096, (name, value, after[name])
        elif name in ("rundlet threads", "processes"):
            assert after[name] <= value + 4, (name, value, after[name])
        else:
            assert after[name] <= value, (name, value, after[name])

with subtest("twin: a sandbox that is there shows in every count"):
    one = json.loads(machine.succeed(f"node-api POST /v1/sandboxes '{wish}'"))["id"]
    during = {
        "files": int(machine.succeed("find /run/rundlet /var/lib/rundlet | wc -l")),
        "processes": int(machine.succeed("ps -e --no-headers | grep -v -e kworker | wc -l")),
    }
    assert all(during[name] > after[name] for name in during), (during, after)
    machine.succeed(f"node-api DELETE '/v1/sandboxes/{one}?force=true'")
