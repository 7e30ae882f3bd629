"""The worker's process: QEMU with direct kernel boot, three disks, a shell on a virtio port.

The kernel of the worker brings real KVM where the host's `/dev/kvm` runs guests natively, and where it does not,
software emulation with AMD SVM does the same at a tenth of the speed.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .channel import Channel, ChannelError

MEMORY_MIB = 6144
# Most that a worker has, and what the figures are taken with.
CPUS = 2
# What an emulated worker has for claims. With two, one guest in a hundred hangs or meets a triple fault
# (docs/decisions/0011-one-emulated-processor.md).
CPUS_EMULATED = 1
BOOT_TIMEOUT = {"kvm": 60, "tcg": 180}
# Quiet, since every line on the serial port costs time; a panic ends the process, which the driver sees at once.
# No huge pages: with them a guest under disk load met a triple fault (docs/decisions/0005-worker-without-thp.md).
KERNEL_COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 oops=panic mitigations=off apparmor=0 audit=0 "
    "systemd.show_status=0 random.trust_cpu=on transparent_hugepage=never"
)


@dataclass(frozen=True)
class WorkerFiles:
    """Where the parts of a worker are: the folders made by worker/build.sh and worker/fetch-qemu.sh."""

    image: Path
    qemu: Path
    payload: Path
    # Root filesystems in the payload.
    tars: tuple[Path, ...] = ()


def choose_accelerator(rundlet: Path) -> tuple[str, str]:
    """`kvm` or `tcg`, and why. RUNDLET_WORKER_ACCEL overrides what the measurement says."""
    forced = os.environ.get("RUNDLET_WORKER_ACCEL")
    if forced:
        if forced not in BOOT_TIMEOUT:
            sys.exit(f"RUNDLET_WORKER_ACCEL is '{forced}': say kvm or tcg")
        return forced, "RUNDLET_WORKER_ACCEL says so"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg", "no usable /dev/kvm here"
    if not rundlet.exists():
        return "tcg", f"{rundlet} is not built, so nothing can tell whether /dev/kvm is native"
    try:
        answer = subprocess.run([rundlet, "doctor", "--json"], capture_output=True, timeout=60, check=False)
        verdict = json.loads(answer.stdout)["kvm"]
        if isinstance(verdict, dict):
            verdict = verdict["verdict"]
    except (OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
        return "tcg", f"rundlet doctor gave no verdict ({error!r})"
    return ("kvm" if verdict == "native" else "tcg"), f"rundlet doctor says that /dev/kvm is {verdict}"


def share_of_processors(accelerator: str, workers: int) -> int:
    """Of this machine's, for each of so many workers that run claims."""
    most = {"kvm": CPUS, "tcg": CPUS_EMULATED}[accelerator]
    return max(1, min(most, len(os.sched_getaffinity(0)) // workers))


def command_line(
    files: WorkerFiles, accelerator: str, run_dir: Path, interactive: bool = False, cpus: int = CPUS
) -> list[str]:
    cpu = {"kvm": "host", "tcg": "max"}[accelerator]
    accel = {"kvm": "kvm", "tcg": "tcg,thread=multi,tb-size=1024"}[accelerator]
    arguments = [
        "setpriv", "--pdeathsig", "KILL", str(files.qemu / "bin/qemu-system-x86_64"),
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-machine", "q35", "-accel", accel, "-cpu", cpu, "-smp", str(cpus), "-m", str(MEMORY_MIB),
        "-kernel", str(files.image / "kernel"), "-initrd", str(files.image / "initrd"),
        "-append", KERNEL_COMMAND_LINE,
        "-serial", f"file:{run_dir}/console.log",
        "-object", "rng-random,id=entropy,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=entropy",
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=shell,path={run_dir}/shell.sock,server=on,wait=off",
        "-device", "virtserialport,chardev=shell,name=org.rundlet.shell",
    ]  # fmt: skip
    if interactive:
        arguments += ["-chardev", "stdio,id=tty,signal=off", "-device", "virtconsole,chardev=tty"]
    # In this order: init of the worker's initramfs tells them apart by it. The data disk's writes go to a
    # nameless temporary file.
    disks = [
        f"file={files.image}/root.erofs,readonly=on",
        f"file={files.payload},readonly=on",
        f"file={files.image}/data.img,snapshot=on,cache=unsafe,discard=unmap",
    ]
    for number, disk in enumerate(disks):
        arguments += ["-drive", f"if=none,id=disk{number},format=raw,{disk}"]
        arguments += ["-device", f"virtio-blk-pci,drive=disk{number}"]
    return arguments


class Qemu:
    """One running worker. Its folder holds the console log and, while it runs, the sockets."""

    def __init__(self, files: WorkerFiles, accelerator: str, interactive: bool = False, cpus: int = CPUS):
        self.run_dir = Path(tempfile.mkdtemp(prefix="rundlet-worker-"))
        self.console_log = self.run_dir / "console.log"
        self._boot_timeout = BOOT_TIMEOUT[accelerator]
        self._log = open(self.run_dir / "qemu.log", "wb")
        self._process = subprocess.Popen(
            command_line(files, accelerator, self.run_dir, interactive, cpus),
            stdin=None if interactive else subprocess.DEVNULL,
            stdout=None if interactive else self._log,
            stderr=self._log,
            env={**os.environ, "TMPDIR": str(self.run_dir)},
        )

    def connect(self) -> Channel:
        """Waits until the worker takes commands."""
        deadline = time.monotonic() + self._boot_timeout
        while True:
            stream = socket.socket(socket.AF_UNIX)
            try:
                stream.connect(str(self.run_dir / "shell.sock"))
                break
            except OSError:
                stream.close()
            if self._process.poll() is not None:
                raise ChannelError(f"QEMU did not start: {self.log_text()}")
            if time.monotonic() > deadline:
                raise ChannelError("QEMU did not open its socket")
            time.sleep(0.05)
        channel = Channel(stream)
        channel.wait_ready(deadline - time.monotonic())
        return channel

    def log_text(self) -> str:
        self._log.flush()
        return (self.run_dir / "qemu.log").read_text(errors="replace").strip()

    def wait(self, timeout: float | None = None) -> int:
        return self._process.wait(timeout)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def discard(self) -> None:
        """Ends the process and removes its folder."""
        self.kill()
        self._log.close()
        shutil.rmtree(self.run_dir, ignore_errors=True)
