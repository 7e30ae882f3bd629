# A guest that is prepared for a template runs no program until it has been renewed, and then has another identity:
# entropy, clock, hostname, machine id, boot id, TCP's numbers. Without templates: one guest, before and after.
# timeout: 900
import json
import shlex

work = "/tmp/renewal"
socket = f"{work}/vsock.sock"


def ask(*words, status=0, timeout=120):
    command = shlex.join(["ask-agent", socket, *words])
    got, shown = machine.execute(f"timeout {timeout} {command} 2>&1", timeout=timeout + 30)
    assert got == status, (words, got, shown)
    return shown


def sh(script, **options):
    return ask("exec", "sh", "-c", script, **options)


def identity():
    program = machine.succeed("cat /opt/rundlet/bin/identity")
    return json.loads(ask("exec", "python3", "-I", "-S", "-c", program))


def compare(*identities):
    """The values that identities share."""
    lines = "".join(json.dumps(one) + "\n" for one in identities)
    _, shown = machine.execute(f"identity compare <<<{shlex.quote(lines)}")
    return {line.split(":")[0] for line in shown.splitlines()[:-1]}


def start():
    """A guest on its own: two disks, a VMM, an agent."""
    machine.succeed(f"rm -rf {work} && mkdir {work} && truncate -s 64M {work}/ext4 && mkfs.ext4 -q -F {work}/ext4")
    disks = [
        {"socket": f"{work}/root.sock", "disk": {"image": {"path": "IMAGE"}}},
        {"socket": f"{work}/scratch.sock", "disk": {"scratch": {"template": f"{work}/ext4", "directory": work}}},
    ]
    share = "/opt/rundlet/share/rundlet"
    words = "rundlet.root=/dev/vda rundlet.scratch=/dev/vdb rundlet.hostname=original"
    spec = {
        "kernel": {"path": f"{share}/vmlinux", "initrd": f"{share}/initrd.cpio", "cmdline": words},
        "memory_mib": 128,
        "vcpus": 1,
        "disks": [
            {"id": "root", "socket": f"{work}/root.sock", "read_only": True},
            {"id": "scratch", "socket": f"{work}/scratch.sock"},
        ],
        "vsock": {"cid": 3, "socket": socket},
        "console": {"path": f"{work}/console", "limit_bytes": 65536},
    }
    config = shlex.quote(json.dumps({"listeners": disks}))
    machine.succeed(
        f"sed \"s|IMAGE|$(echo /var/lib/rundlet/images/*.erofs)|\" <<<{config} >{work}/disks.json; "
        f"(exec setsid vhost-blk-ro serve --config {work}/disks.json) >{work}/events 2>&1 </dev/null & "
        f"echo $! >{work}/disks.pid"
    )
    machine.wait_until_succeeds(f"grep listening {work}/events", timeout=30)
    machine.succeed(
        f"echo {shlex.quote(json.dumps(spec))} >{work}/spec.json; "
        f"(exec setsid rundlet-vmm boot --spec {work}/spec.json) >{work}/vmm 2>&1 </dev/null & echo $! >{work}/vmm.pid"
    )
    machine.wait_until_succeeds(f"grep timeline {work}/vmm", timeout=120)


def stop():
    machine.succeed(f"kill $(cat {work}/vmm.pid) $(cat {work}/disks.pid)")
    machine.wait_until_fails("pgrep -x rundlet-vmm", timeout=30)
    machine.succeed(f"rm -rf {work}")


def refused(*words):
    return json.loads(ask(*words, status=1))["failed"]


def now():
    return int(machine.succeed("date +%s%N"))


start()
before = identity()
assert before["hostname"] == "original", before

with subtest("twin: a command that would not be in a clone is told, and so is a process that cannot be frozen"):
    machine.succeed(
        f"(exec setsid ask-agent {socket} exec sh -c 'echo bound; sleep 1000') >{work}/bound 2>&1 </dev/null & "
        f"echo $! >{work}/bound.pid"
    )
    machine.wait_until_succeeds(f"grep bound {work}/bound", timeout=60)
    failure = refused("prepare")
    assert failure["kind"] == "state" and "keep" in failure["message"], failure
    machine.succeed(f"kill $(cat {work}/bound.pid)")
    stray = "echo $$ >/sys/fs/cgroup/cgroup.procs; echo $$ >/stray; echo on; exec sleep 1000"
    ask("exec", "--keep", "sh", "-c", stray)
    failure = refused("prepare")
    assert failure["kind"] == "state" and "(sleep) is in the root cgroup" in failure["message"], failure
    sh("kill $(cat /stray); rm /stray")

with subtest("prepared, nothing runs"):
    loop = "while :; do date +%s%N >>/{}; done"
    ask("exec", "--keep", "sh", "-c", "echo on; " + loop.format("ticks"))
    # One that has made a cgroup of its own.
    own = "mkdir /sys/fs/cgroup/own; echo $$ >/sys/fs/cgroup/own/cgroup.procs; echo on; "
    ask("exec", "--keep", "sh", "-c", own + loop.format("own"))
    server = "mkfifo /question /answer; echo warm; while read -r word </question; do echo \"$word $$\" >/answer; done"
    ask("exec", "--keep", "sh", "-c", server)
    pid = sh("echo ready >/question & cat /answer").split()[1]
    guest, host = int(sh("date +%s%N")), now()
    assert json.loads(ask("prepare")) == {"prepared": {}}
    last = guest + now() - host + 10**9
    failure = refused("exec", "true")
    assert failure["kind"] == "state" and "renewed" in failure["message"], failure
    machine.sleep(4)

with subtest("a renewal that cannot be carried out names the field, and lets nobody run"):
    for field, value in (("boot_id", "x"), ("machine_id", "0" * 32), ("hostname", ""), ("entropy", "00")):
        failure = refused("renew", f"{field}={value}")
        assert failure["message"].startswith(f"{field}: "), failure

with subtest("renewed, the guest is another one"):
    # One hour ahead: the clock follows the host's word.
    ahead = now() + 3600 * 10**9
    renewal = json.loads(ask("renew", f"realtime_ns={ahead}"))["renewal"]
    after = identity()
    for field in ("hostname", "machine_id", "boot_id"):
        assert after[field] == renewal[field], (field, after, renewal)
    assert 0 <= after["realtime_ns"] - ahead < 60 * 10**9, (after["realtime_ns"], ahead)
    assert compare(before, after) == set(), compare(before, after)

with subtest("twin: asked again without a renewal, what is made once is the same"):
    shared = compare(after, identity())
    assert shared == {"boot_id", "machine_id", "hostname", "tcp.sequences", "tcp.timestamps"}, shared

with subtest("its programs did not run in between: no time later than the preparation, earlier than the renewal"):
    for log in ("/ticks", "/own"):
        times = [int(line) for line in sh(f"cat {log}").split()]
        assert times[0] < guest and times[-1] > ahead, (log, times[0], guest, times[-1], ahead)
        between = [time for time in times if last < time < ahead]
        assert not between, (log, len(between), last, ahead)

with subtest("the server that was warm is the same process and answers"):
    assert sh("echo again >/question & cat /answer").split() == ["again", pid]
stop()

with subtest("a guest that was never prepared, without /etc/machine-id in its image, is renewed as well"):
    start()
    sh("rm -f /etc/machine-id")
    renewal = json.loads(ask("renew"))["renewal"]
    after = identity()
    for field in ("hostname", "machine_id", "boot_id"):
        assert after[field] == renewal[field], (field, after, renewal)
    stop()
