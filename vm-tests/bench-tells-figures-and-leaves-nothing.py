# `rundlet bench` measures clones, cold boots and QEMU's microvm on the same guest, in one run, says in its report what
# could not be measured, and leaves nothing behind however it ends, peers' processes and files included.
# timeout: 1500
import json

machine.succeed("modprobe vhost_vsock && rundlet template build --memory 128 debian base")
# Digests of programs that have not changed are remembered. QEMU's processes are told by an argument: in a worker
# their name is the dynamic linker's.
leftovers = "leftovers | grep -v -e '^store MiB' -e /digests/; ps -e -o args= | grep '[g]uest-cid' || true"
machine.succeed("rundlet bench start --count 1 --concurrency 1 --template base >/dev/null")
before = machine.succeed(leftovers)


def nothing_is_left():
    for _ in range(30):
        now = machine.succeed(leftovers)
        if now == before:
            return
        machine.sleep(1)
    raise AssertionError("left behind: " + "; ".join(sorted(set(now.splitlines()) - set(before.splitlines()))))


with subtest("batches of every system, on an empty host and with sandboxes deployed"):
    table = machine.succeed(
        "rundlet bench start --count 2 --concurrency 2 --deployed 1 --template base --cold debian --peer qemu "
        "--peer firecracker-restore=/nonexistent --json /tmp/start.json --html /tmp/start.html",
        timeout=900,
    )
    report = json.loads(machine.succeed("cat /tmp/start.json"))
    assert report["version"] == 1 and report["guest"]["memory_mib"] == 128, report
    systems = {it["name"]: it for it in report["systems"]}
    assert list(systems) == ["rundlet", "rundlet-cold", "qemu", "firecracker"], list(systems)
    assert "is no program" in systems["firecracker"]["unusable"], systems["firecracker"]
    for name in ("rundlet", "rundlet-cold", "qemu"):
        rows = systems[name]["start"]
        shape = [(row["deployed"], row["at_once"], row["ready"], row["failed"]) for row in rows]
        assert shape == [(0, 2, 2, 0), (1, 2, 2, 0)], (name, rows)
        for row in rows:
            assert 0 < row["start_ms"]["p50"] <= row["start_ms"]["max"] <= row["batch_ms"]["max"], (name, row)
            assert row["host_cpu_ms"] > 0 and row["process_cpu_ms"] > 0 and row["steps"], (name, row)
        assert name in table, table
    inputs = {it["name"] for it in report["inputs"]}
    assert {"rundlet-vmm", "vhost-blk-ro", "kernel", "initrd", "qemu-system-x86_64"} <= inputs, inputs

    def median(name):
        return systems[name]["start"][0]["start_ms"]["p50"]

    assert median("rundlet") < median("rundlet-cold") / 2, table
    nothing_is_left()

with subtest("idle clones, step by step"):
    machine.succeed("rundlet bench density --count 6 --step 3 --quiet 2 --template base --json /tmp/density.json", timeout=300)
    density = json.loads(machine.succeed("cat /tmp/density.json"))["systems"][0]["density"]
    assert [row["deployed"] for row in density["rows"]] == [3, 6] and "stopped" not in density, density
    for row in density["rows"]:
        assert 0 < row["uss_kib"] <= row["pss_kib"] and row["backend_pss_kib"] > 0, row
        assert row["quiet_s"] >= 2 and row["page_tables_kib"] > 0, row
    nothing_is_left()

with subtest("one page of both runs, which needs nothing from elsewhere"):
    machine.succeed("rundlet bench report /tmp/start.json /tmp/density.json --html /tmp/all.html >/dev/null")
    page = machine.succeed("cat /tmp/all.html")
    for figure in ("Batch time over concurrency", "Memory of the host over density", "Start time over deployed sandboxes"):
        assert figure in page, figure
    assert "<script" not in page and "http" not in page

with subtest("twin: what is no report makes no page"):
    machine.fail("rundlet bench report /etc/passwd --html /tmp/none.html")
    machine.fail("test -e /tmp/none.html")

for signal, status in (("INT", 130), ("KILL", 137)):
    with subtest(f"SIG{signal} in the middle leaves nothing of ours and nothing of a peer's"):
        machine.succeed(
            "rm -f /tmp/bench.status; (set +e; setsid rundlet bench start --count 9 --concurrency 3 --template base "
            "--peer qemu >/tmp/bench.out 2>&1; echo $? >/tmp/bench.status) >/dev/null 2>&1 &"
        )
        machine.wait_until_succeeds("test $(ps -e -o args= | grep -c '[g]uest-cid') -ge 3", timeout=240)
        machine.succeed(f"pkill -{signal} -x rundlet")
        machine.wait_for_file("/tmp/bench.status", timeout=120)
        assert machine.succeed("cat /tmp/bench.status").strip() == str(status), machine.succeed("cat /tmp/bench.out")
        nothing_is_left()

machine.succeed("rm -f /tmp/start.* /tmp/density.json /tmp/all.html /tmp/bench.*; rundlet template rm base")
