# A sandbox that a zygote makes with a jail: who it is, what it sees, and that it still works. Its twin without one.
import json

PROGRAM = r'''
import array, json, os, socket, statistics, subprocess, sys, time
def start(argv, **kw):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = subprocess.Popen(argv + [str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    assert json.loads(ours.recv(4096)) == {"ready": {}}
    return ours, child
def ask(sock, request, fds=()):
    sock.sendmsg([json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])
def hear(sock):
    data, anc, _, _ = sock.recvmsg(4096, socket.CMSG_SPACE(64))
    for level, kind, blob in anc:
        for fd in array.array("i", blob[:len(blob) // 4 * 4]): os.close(fd)
    return json.loads(data)
'''

machine.succeed("rundlet run debian -- true")  # makes what stays: the scratch template
machine.succeed("mkdir -p /tmp/j && cat > /tmp/j/lib.py <<'E'\n" + PROGRAM + "\nE")
machine.succeed(r"""cat > /tmp/j/one.py <<'E'
import sys; sys.path.insert(0, "/tmp/j")
from lib import *
jailed, uid = sys.argv[1] == "jail", 100123
place = "/run/j-" + sys.argv[1]
os.makedirs(place, mode=0o700, exist_ok=True)
if jailed: os.chown(place, uid, uid)
guest = "/opt/rundlet/share/rundlet/"
spec = {"kernel": {"path": guest + "vmlinux", "initrd": guest + "initrd.cpio", "cmdline": "quiet"}, "memory_mib": 128,
        "vcpus": 2, "vsock": {"cid": 3, "socket": place + "/vsock.sock"},
        "console": {"path": place + "/console.log"}}
if jailed: spec["jail"] = {"uid": uid, "gid": uid, "root": place}
sock, zygote = start(["/opt/rundlet/bin/rundlet-vmm", "zygote", "--socket"])
ask(sock, {"boot": {"id": "x", "spec": spec}})
pid = hear(sock)["cloned"]["pid"]
def threads():
    folder = f"/proc/{pid}/task"
    return {t: dict(l.split(":", 1) for l in open(f"{folder}/{t}/status").read().splitlines()) for t in os.listdir(folder)}
# Once all have their filters it stands still, to be looked at.
for _ in range(2000):
    found = {status["Name"].strip(): status["Seccomp"].strip() for status in threads().values()}
    if {"vcpu0", "vcpu1"} <= set(found) and set(found.values()) == {"2"}: break
    time.sleep(0.005)
os.kill(pid, 19)
tasks = {}
for status in threads().values():
    tasks[status["Name"].strip()] = {k: status[k].split() for k in ("Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")}
ns = {n: os.readlink(f"/proc/{pid}/ns/{n}") != os.readlink(f"/proc/self/ns/{n}") for n in ("mnt", "net", "ipc", "uts", "pid")}
print(json.dumps({"tasks": tasks, "other": ns, "root": sorted(os.listdir(f"/proc/{pid}/root/"))}))
os.kill(pid, 18)
print(json.dumps(hear(sock)))
print(json.dumps([sorted(os.listdir(place)), os.path.getsize(place + "/console.log") > 0]))
sock.close()
E""")


def look(kind):
    lines = machine.succeed(f"python3 /tmp/j/one.py {kind}").splitlines()
    return [json.loads(line) for line in lines if line.startswith(("{", "["))][-3:]


with subtest("every thread in the jail is nobody, with no capability and a filter; it sees its directory and no more"):
    seen, end, left = look("jail")
    # KVM adds a thread of the kernel's own, which has the rights of the vCPU that was the first to run.
    assert {"vmm-x", "vcpu0", "vcpu1"} <= set(seen["tasks"]), seen
    for name, task in seen["tasks"].items():
        assert task["Uid"] == ["100123"] * 4 and task["Gid"] == ["100123"] * 4 and task["Groups"] == [], (name, task)
        caps = {int(task[which][0], 16) for which in ("CapPrm", "CapEff", "CapBnd", "CapAmb")}
        assert caps == {0} and task["NoNewPrivs"] == ["1"] and task["Seccomp"] == ["2"], (name, task)
    assert all(seen["other"].values()), seen
    assert seen["root"] == ["console.log", "vsock.sock"], seen

with subtest("its guest runs, here to the panic of one without a disk; its socket goes with it"):
    assert end["ended"]["code"] == 11, end
    assert left == [["console.log"], True], left

with subtest("twin: without a jail it is who started it, sees everything, and has the filter all the same"):
    seen, end, left = look("free")
    for name, task in seen["tasks"].items():
        assert task["Uid"] == ["0"] * 4 and int(task["CapBnd"][0], 16) > 0, (name, task)
        assert task["NoNewPrivs"] == ["1"] and task["Seccomp"] == ["2"], (name, task)
    assert not any(seen["other"].values()) and "etc" in seen["root"], seen
    assert end["ended"]["code"] == 11, end
