"""The figures of docs/budgets.md, taken in one worker in one run: `vm-tests/run --bench`.

Times are only good for the machine they were taken on; the ratios, bytes and counts are what is promised. Not a claim:
nothing here passes or fails.
"""

import json
import shlex
import statistics
from dataclasses import dataclass, field

from driver.machine import Machine

BOOTS = 5
# Short turns and many: whatever else the machine does hits both sides of a pair.
ROUNDS = 8
FIO_SECONDS = 2
DATA_MIB = 512
# Name, fio's options. Direct, so that each read is a request to the device.
WORKLOADS = {
    "4 KiB random reads, one at a time": {"rw": "randread", "bs": "4k", "iodepth": 1},
    "4 KiB random reads, 32 at a time": {"rw": "randread", "bs": "4k", "iodepth": 32},
    "1 MiB sequential reads, 4 at a time": {"rw": "read", "bs": "1M", "iodepth": 4},
}
# The guest's disk behind each backend.
OURS, PEER = "vdb", "vdc"
PEER_AIO = ("threads", "io_uring")


@dataclass
class Figures:
    """Everything measured; `markdown` is the table for docs/budgets.md."""

    boot_ms: dict[str, float] = field(default_factory=dict)
    memory_kib: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    reads: dict[str, dict[str, float]] = field(default_factory=dict)

    def json(self) -> str:
        return json.dumps(self.__dict__, indent=2)

    def markdown(self) -> str:
        rows = ["| what | measured |", "|---|---|"]
        rows += [f"| {name} | {value:,.0f} ms |" for name, value in self.boot_ms.items()]
        rows += [f"| {name} | {value:,} KiB |" for name, value in self.memory_kib.items()]
        rows += [f"| {name} | {value:,} bytes |" for name, value in self.bytes.items()]
        for name, read in self.reads.items():
            rows.append(
                f"| {name}: `vhost-blk-ro` against `qemu-storage-daemon` | {read['ratio']:.2f}× "
                f"({read['ours']:,.0f} against {read['peer']:,.0f} reads/s) |"
            )
        return "\n".join(rows)


def run(machine: Machine) -> Figures:
    figures = Figures()
    _measure_boots(machine, figures)
    _measure_clones(machine, figures)
    for name, path in (("kernel image", "vmlinux"), ("init and its initramfs", "initrd.cpio")):
        figures.bytes[name] = int(machine.succeed(f"stat -c %s /opt/rundlet/share/rundlet/{path}"))
    _measure_reads(machine, figures)
    return figures


def _measure_boots(machine: Machine, figures: Figures) -> None:
    """Medians of several cold boots of 128 MiB, after one that warms the caches."""
    machine.succeed("rundlet run debian -- true")
    boots: list[dict[str, float]] = []
    memories: list[dict[str, int]] = []
    for _ in range(BOOTS):
        shown = machine.succeed("rundlet run --memory 128 --timeline --stats debian -- true 2>&1")
        lines = [json.loads(line) for line in shown.splitlines() if line.startswith("{")]
        timeline = next(line["timeline"] for line in lines if "timeline" in line)
        samples = next(line["stats"] for line in lines if "stats" in line)
        node, vmm, guest = (timeline[part] for part in ("node_us", "vmm_us", "guest_us"))
        init = guest["ready"] - guest["init"]
        boots.append({
            "cold boot, from `rundlet run` to agent ready": node["ready"],
            "of it the CLI and the block backend": node["ready"] - vmm["agent_ready"],
            "of it the VMM, from exec to the guest's first instruction": vmm["running"],
            # By the host's clock: the guest's own starts some way into its boot.
            "of it the guest's kernel, to init": vmm["agent_ready"] - vmm["running"] - init,
            "of it init, to agent ready": init,
        })  # fmt: skip
        ready = next(sample for sample in samples if sample["at"] == "ready")
        usage = {process["name"]: process for process in ready["processes"]}
        memories.append({
            "VMM process at agent ready, guest RAM included, PSS": usage["rundlet-vmm"]["pss_kib"],
            "VMM process without guest RAM, PSS": usage["rundlet-vmm"]["own_pss_kib"],
            "block backend, PSS": usage["vhost-blk-ro"]["pss_kib"],
        })  # fmt: skip
    figures.boot_ms = {name: statistics.median(boot[name] for boot in boots) / 1000 for name in boots[0]}
    figures.memory_kib = {name: round(statistics.median(memory[name] for memory in memories)) for name in memories[0]}


def _measure_clones(machine: Machine, figures: Figures) -> None:
    """Medians of single clones without a zygote: each verifies its template."""
    machine.succeed("rundlet template build --memory 128 debian base")
    clones: list[dict[str, float]] = []
    for _ in range(BOOTS + 1):
        shown = machine.succeed("rundlet run --timeline --template base -- echo here 2>&1")
        lines = [json.loads(line) for line in shown.splitlines() if line.startswith("{")]
        node = next(line["timeline"] for line in lines if "timeline" in line)["node_us"]
        clones.append({
            "clone, from `rundlet run --template` to renewed agent": node["ready"],
            "clone, from `rundlet run --template` to the command's first output": node["first_output"],
        })  # fmt: skip
    # The first one warms the caches.
    for name in clones[0]:
        figures.boot_ms[name] = statistics.median(clone[name] for clone in clones[1:]) / 1000
    machine.succeed("rundlet template rm base")


# -- reads: one guest of ours with the same file twice, once through each backend -------------------------------

_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t erofs -o ro /dev/vda /root
for tree in proc sys dev; do
    mount --move /$tree /root/$tree
done
mount -t tmpfs tmpfs /root/tmp
cp /measure /bin/busybox /root/tmp/
exec switch_root /root /bin/sh /tmp/measure
"""

# fio's terse line, version 3: field 3 is the job's name, field 8 its rate of reads.
_MEASURE = """
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
cd /tmp
cat >jobs <<END
{jobs}
END
fio --readonly --output-format=terse jobs | cut -d';' -f3,8 | sed 's/^/RATE /'
echo MEASURED
/tmp/busybox poweroff -f
"""


def _jobs() -> str:
    """fio's job file: one job after the other, each pair of turns in the other order than the one before it."""
    lines = ["[global]", "direct=1", "ioengine=libaio", "thread", "time_based", f"runtime={FIO_SECONDS}", "randrepeat=0"]
    for number, options in enumerate(WORKLOADS.values()):
        for turn in range(ROUNDS):
            for disk in (OURS, PEER) if turn % 2 == 0 else (PEER, OURS):
                lines += [f"[{number}.{turn}.{disk}]", "stonewall", f"filename=/dev/{disk}"]
                lines += [f"{option}={value}" for option, value in options.items()]
    return "\n".join(lines)


def _measure_reads(machine: Machine, figures: Figures) -> None:
    _prepare_guest(machine)
    # Each way for the peer to read its file, each against ours beside it; the one that does better against us counts.
    by_aio = {aio: _one_guest(machine, aio) for aio in PEER_AIO}
    for number, name in enumerate(WORKLOADS):
        best = min(by_aio, key=lambda aio: _ratio(by_aio[aio], number))
        rates = by_aio[best]
        figures.reads[name] = {
            "ratio": _ratio(rates, number),
            "ours": statistics.median(rates[(number, OURS)]),
            "peer": statistics.median(rates[(number, PEER)]),
            "peer_aio": best,
        }


def _ratio(rates: dict[tuple[int, str], list[float]], number: int) -> float:
    """Median over the pairs of turns."""
    pairs = zip(rates[(number, OURS)], rates[(number, PEER)], strict=True)
    return statistics.median(ours / peer for ours, peer in pairs)


def _prepare_guest(machine: Machine) -> None:
    measure = _MEASURE.format(jobs=_jobs())
    machine.succeed(
        "rm -rf /tmp/bench && mkdir -p /tmp/bench/tree/bin && cd /tmp/bench/tree && "
        f"printf %s {shlex.quote(_INIT)} >init && printf %s {shlex.quote(measure)} >measure && "
        "chmod +x init && cp /bin/busybox bin/ && find . | busybox cpio -o -H newc >../initrd.cpio",
        f"dd if=/dev/urandom of=/var/lib/rundlet/bench.data bs=1M count={DATA_MIB} status=none",
    )


def _one_guest(machine: Machine, aio: str) -> dict[tuple[int, str], list[float]]:
    """Boots one guest with both backends and returns the rates, by workload and disk."""
    image = machine.succeed(
        "python3 -c 'import glob, json; name, = glob.glob(\"/var/lib/rundlet/names/bench*\"); "
        "print(\"/var/lib/rundlet/images/\" + json.load(open(name))[\"digest\"] + \".erofs\")'"
    ).strip()
    data = "/var/lib/rundlet/bench.data"
    config = {"listeners": [
        {"socket": "/tmp/bench/root.sock", "disk": {"image": {"path": image}}},
        {"socket": "/tmp/bench/ours.sock", "disk": {"image": {"path": data}}},
    ]}  # fmt: skip
    names = ("root", "ours", "peer")
    spec = {
        "kernel": {
            "path": "/opt/rundlet/share/rundlet/vmlinux",
            "initrd": "/tmp/bench/initrd.cpio",
            "cmdline": "",
        },
        "memory_mib": 256,
        "vcpus": 1,
        "window_mib": 8,
        "disks": [{"id": name, "socket": f"/tmp/bench/{name}.sock", "read_only": True} for name in names],
        "console": {"path": "/tmp/bench/console.log", "limit_bytes": 1 << 20},
    }
    machine.succeed(
        f"cd /tmp/bench && rm -f console.log *.sock && printf %s {shlex.quote(json.dumps(config))} >config.json && "
        f"printf %s {shlex.quote(json.dumps(spec))} >spec.json",
        "(exec setsid vhost-blk-ro serve --config /tmp/bench/config.json) >/tmp/bench/ours.log 2>&1 </dev/null & "
        "echo $! >/tmp/bench/ours.pid",
        "(exec setsid qemu-storage-daemon "
        f"--blockdev driver=file,node-name=data,filename={data},read-only=on,aio={aio} "
        "--export type=vhost-user-blk,id=e,node-name=data,addr.type=unix,addr.path=/tmp/bench/peer.sock,writable=off) "
        ">/tmp/bench/peer.log 2>&1 </dev/null & echo $! >/tmp/bench/peer.pid",
    )
    machine.wait_for_file("/tmp/bench/peer.sock", timeout=30)
    machine.wait_for_file("/tmp/bench/ours.sock", timeout=30)
    limit = 240 + ROUNDS * len(WORKLOADS) * 2 * (FIO_SECONDS + 2)
    status, shown = machine.execute(f"timeout {limit} rundlet-vmm boot --spec /tmp/bench/spec.json 2>&1", timeout=limit + 30)
    console = machine.succeed("cat /tmp/bench/console.log; kill $(cat /tmp/bench/ours.pid /tmp/bench/peer.pid)")
    if status != 0 or "MEASURED" not in console:
        raise RuntimeError(f"the measuring guest ended with {status}: {shown}\n{console[-3000:]}")
    rates: dict[tuple[int, str], list[float]] = {}
    for line in console.splitlines():
        if line.startswith("RATE "):
            job, rate = line.removeprefix("RATE ").split(";")
            number, _, disk = job.split(".")
            rates.setdefault((int(number), disk), []).append(float(rate))
    return rates
