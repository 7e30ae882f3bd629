# A spec that cannot be met is refused before anything is started: exit code 2 and one message that names the field.
import copy
import json
import shlex

kernel = {"path": "/opt/rundlet/share/rundlet/vmlinux"}
good = {"kernel": kernel, "memory_mib": 128, "vcpus": 1, "console": {"path": "/tmp/console.log", "limit_bytes": 65536}}
disk = {"id": "root", "socket": "/tmp/no-such.sock", "read_only": True}


def boot(text):
    return machine.execute(f"timeout 60 rundlet-vmm boot --spec - <<<{shlex.quote(text)} 2>&1")


def changed(**fields):
    spec = copy.deepcopy(good)
    spec.update(fields)
    return json.dumps(spec)


with subtest("twin: the good spec boots; its kernel finds no root and panics, which is exit code 11"):
    status, shown = boot(json.dumps(good))
    assert status == 11, (status, shown)
    machine.succeed("grep -q 'Kernel panic' /tmp/console.log && rm /tmp/console.log")

bad = [
    ("memory_mib", changed(memory_mib=1)),
    ("memory_mib", changed(memory_mib=1 << 40)),
    ("memory_mib", changed(memory_mib=-5)),
    ("vcpus", changed(vcpus=0)),
    ("vcpus", changed(vcpus=17)),
    ("window_mib", changed(window_mib=3)),
    ("window_mib", changed(window_mib=16)),
    ("surprise", changed(surprise=True)),
    ("path", changed(kernel={})),
    ("queue_size", changed(disks=[{**disk, "queue_size": 100}])),
    ("queues", changed(disks=[{**disk, "queues": 0}])),
    ("id", changed(disks=[disk, disk])),
    ("cid", changed(vsock={"cid": 2, "socket": "/tmp/vsock.sock"})),
    ("limit_bytes", changed(console={"path": "/tmp/console.log", "limit_bytes": 0})),
    ("line", "{"),
    ("line", ""),
    ("memory_mib", json.dumps({"kernel": kernel})),
]
for field, text in bad:
    with subtest(f"{field}: {text[:100]}"):
        status, shown = boot(text)
        assert status == 2, (status, shown)
        assert field in shown, shown
        assert "panicked" not in shown, shown

for path in ("/no-such-kernel", "/etc/passwd", "/"):
    with subtest(f"a kernel that is none, {path}, is an error that names it"):
        status, shown = boot(changed(kernel={"path": path}))
        assert status in (1, 2) and "kernel" in shown and path in shown and "panicked" not in shown, (status, shown)

with subtest("a socket that nobody listens on is an error that names it, not a hang"):
    status, shown = boot(changed(disks=[disk]))
    assert status in (1, 2, 13) and "no-such.sock" in shown, (status, shown)

with subtest("the block backend is as strict"):
    for word, config in (
        ("surprise", {"listeners": [], "surprise": 1}),
        ("no-such-image", {"listeners": [{"socket": "/tmp/x.sock", "disk": {"image": {"path": "/no-such-image"}}}]}),
    ):
        status, shown = machine.execute(
            f"timeout 60 vhost-blk-ro serve --config - <<<{shlex.quote(json.dumps(config))} 2>&1"
        )
        assert status not in (0, 124) and word in shown and "panicked" not in shown, (status, shown)
    machine.succeed("test ! -e /tmp/x.sock")

with subtest("nothing was started that lives on"):
    machine.fail("pgrep -x 'rundlet-vmm|vhost-blk-ro'")
    machine.succeed("test ! -e /tmp/console.log || rm /tmp/console.log")
