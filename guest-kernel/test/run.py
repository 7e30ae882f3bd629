"""Boots a guest kernel in QEMU's emulation and checks what rundlet-vmm will count on.

Called by ../test.sh. Each test is a claim; its name says what holds. Prints `N passed, N failed`.
"""

import argparse
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WINDOW_BASE, WINDOW_SIZE = 0x80_0000, 0x20_0000
WINDOW = f"rundlet.window={WINDOW_BASE:#x},{WINDOW_SIZE:#x}"
EXIT = "rundlet.exit=0x600"
# isa-debug-exit ends QEMU with 2 * value + 1.
POWER_OFF, RESTART, PANIC = 1, 3, 5
DISK_BYTES = 16 << 20


def newc(entries):
    """An initramfs: (name, mode, device, bytes) -> cpio "newc" archive."""
    out = bytearray()
    for ino, (name, mode, (major, minor), data) in enumerate(entries + [("TRAILER!!!", 0, (0, 0), b"")], 1):
        fields = [ino, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0]
        out += b"070701" + b"".join(b"%08x" % f for f in fields) + name.encode() + b"\0"
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def fnv1a(data):
    total = 0xCBF29CE484222325
    for byte in data:
        total = (total ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return total


def gaps(kernel):
    """Page ranges (base, size) between the segments of an ELF kernel; the kernel frees them at boot."""
    elf = Path(kernel).read_bytes()
    (table,), (count,) = struct.unpack_from("<Q", elf, 32), struct.unpack_from("<H", elf, 56)
    headers = [struct.unpack_from("<IIQQQQQQ", elf, table + 56 * i) for i in range(count)]
    loads = sorted((h[4], h[4] + h[6]) for h in headers if h[0] == 1)
    pairs = [(-(-end // 4096) * 4096, start) for (_, end), (start, _) in zip(loads, loads[1:])]
    found = [(end, start - end) for end, start in pairs if start - end >= 256 << 10]
    assert found, "no gap between the segments"
    return found


class Machine:
    """One QEMU microvm without ACPI and PCI: PIC, IOAPIC, PIT, one 16550, MP table, virtio-mmio."""

    def __init__(self, setup, test, words, extra=(), memory="128M", cpus=1):
        self.setup = setup
        # In memory: a disk's file system may allocate more than the page that was touched.
        self.directory = tempfile.TemporaryDirectory(prefix="guest-kernel-", dir="/dev/shm")
        self.console = Path(self.directory.name, "console")
        self.monitor = Path(self.directory.name, "monitor")
        command = [setup.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-M", "microvm,acpi=off,rtc=off,isa-serial=on", "-accel", "tcg", "-cpu", "max"]
        command += ["-m", memory, "-smp", str(cpus), "-global", "virtio-mmio.force-legacy=false"]
        # Guest RAM is a sparse file: its blocks are the pages that anybody ever touched.
        self.ram = Path(self.directory.name, "ram")
        ram = f"memory-backend-file,id=ram,size={memory},share=on,mem-path={self.ram}"
        command += ["-object", ram, "-machine", "memory-backend=ram"]
        self.keyboard = Path(self.directory.name, "keyboard")
        serial = f"socket,id=serial,path={self.keyboard},server=on,wait=off,logfile={self.console}"
        command += ["-chardev", serial, "-serial", "chardev:serial"]
        command += ["-qmp", f"unix:{self.monitor},server,nowait"]
        command += ["-device", "isa-debug-exit,iobase=0x600,iosize=4"]
        command += ["-kernel", setup.kernel, "-initrd", setup.initrd]
        command += ["-append", " ".join(["console=ttyS0", "panic=-1", f"test={test}", *words])]
        self.process = subprocess.Popen([*map(str, command), *extra])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.directory.cleanup()

    def output(self):
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def ended(self, seconds=60):
        """QEMU's exit status, once the guest has ended by itself."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s; console:\n{self.output()}") from None

    def said(self, pattern, seconds=60):
        """The first match of the pattern on the console."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = re.search(pattern, self.output())
            if found:
                return found
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError(f"console never said {pattern!r}:\n{self.output()}")

    def type(self, line):
        """Types a line at the console, and waits until something comes of it."""
        with socket.socket(socket.AF_UNIX) as keyboard:
            keyboard.connect(str(self.keyboard))
            keyboard.sendall(line.encode() + b"\n")
            self.said("test: (copy|done)")

    def save(self, path):
        """Stops the machine and writes all of it to a file."""
        self.ask("stop")
        self.ask("migrate", uri=f"file:{path}")
        self.migrated()

    def go_on(self):
        """Lets a machine that was started with a saved one's state run."""
        end = time.monotonic() + 60
        while not self.monitor.exists():
            assert time.monotonic() < end and self.process.poll() is None, "no QEMU"
            time.sleep(0.1)
        self.migrated()
        self.ask("cont")

    def migrated(self):
        end = time.monotonic() + 60
        while (status := self.ask("query-migrate").get("status")) != "completed":
            assert status != "failed" and time.monotonic() < end, f"saving or loading: {status}"
            time.sleep(0.1)

    def touched(self, base, size):
        """How many bytes of guest-physical memory from base on have ever been touched."""
        total, at, end = 0, base, base + size
        with open(self.ram, "rb") as ram:
            while at < end:
                try:
                    start = os.lseek(ram.fileno(), at, os.SEEK_DATA)
                except OSError:  # no data behind this point
                    break
                stop = os.lseek(ram.fileno(), start, os.SEEK_HOLE)
                total += max(0, min(stop, end) - start)
                at = stop
        return total

    def ask(self, command, **arguments):
        """One QMP command in a connection of its own."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.monitor))
            stream = monitor.makefile("rw")
            stream.readline()
            for name, values in (("qmp_capabilities", {}), (command, arguments)):
                stream.write(json.dumps({"execute": name, "arguments": values}) + "\n")
                stream.flush()
                answer = {"event": ""}
                while "event" in answer:
                    answer = json.loads(stream.readline())
            assert "return" in answer, f"{command}: {answer}"
            return answer["return"]


class Setup:
    """What every test needs: QEMU, kernel, an initramfs, a disk with known content."""

    def __init__(self, arguments, directory):
        self.qemu, self.kernel = arguments.qemu, arguments.kernel
        self.initrd = Path(directory, "initrd")
        entries = [("dev", 0o040755, (0, 0), b""), ("dev/console", 0o020600, (5, 1), b"")]
        entries.append(("init", 0o100755, (0, 0), Path(arguments.init).read_bytes()))
        self.initrd.write_bytes(newc(entries))
        self.disk = Path(directory, "disk")
        self.content = os.urandom(1 << 16) * (DISK_BYTES >> 16)
        self.disk.write_bytes(self.content)

    def drive(self, *options):
        """QEMU arguments for a virtio-mmio disk that keeps to what its driver shares with it."""
        device = ",".join(["virtio-blk-device", "drive=d", "id=disk", *options])
        return ["-drive", f"if=none,id=d,format=raw,file={self.disk}", "-device", device]


def boots_and_powers_off(setup):
    with Machine(setup, "none", [EXIT, WINDOW]) as machine:
        status = machine.ended()
        assert status == POWER_OFF and "test: done" in machine.output(), f"{status}: {machine.output()}"


def restart_is_told(setup):
    with Machine(setup, "restart", [EXIT]) as machine:
        assert machine.ended() == RESTART


def halt_ends_the_machine(setup):
    with Machine(setup, "halt", [EXIT]) as machine:
        assert machine.ended() == POWER_OFF


def panic_is_told_after_its_message(setup):
    with Machine(setup, "panic", [EXIT]) as machine:
        assert machine.ended() == PANIC
        assert "Kernel panic - not syncing: Attempted to kill init" in machine.output()


def early_panic_is_told(setup):
    with Machine(setup, "none", [EXIT, "rdinit=/nothing"]) as machine:
        assert machine.ended() == PANIC


def without_exit_port_a_restart_still_resets(setup):
    with Machine(setup, "restart", ["reboot=t"]) as machine:
        assert machine.ended() == 0  # -no-reboot makes a reset an ordinary end


def quiet_by_default(setup):
    with Machine(setup, "none", [EXIT, WINDOW]) as machine:
        machine.ended()
        # QEMU's emulation has no kvm-clock, hence no wall clock; the last word is always printed.
        expected = {"", "Unable to read current time from RTC", "reboot: Power down"}
        lines = (re.sub(r"^\[ *[0-9.]+\] ", "", line.strip()) for line in machine.output().splitlines())
        other = [line for line in lines if line not in expected and not line.startswith("test:")]
        assert not other, f"unexpected lines on the console: {other}"


def all_features_with_four_cpus(setup):
    with Machine(setup, "features", [EXIT, WINDOW], cpus=4) as machine:
        assert machine.ended(120) == POWER_OFF
        assert "test: features failed=0 cpus=4" in machine.output(), machine.output()


def sixteen_cpus(setup):
    with Machine(setup, "features", [EXIT], cpus=16) as machine:
        assert machine.ended(180) == POWER_OFF
        assert "cpus=16" in machine.output(), machine.output()


def in_window(address, length=1):
    return WINDOW_BASE <= address and address + length <= WINDOW_BASE + WINDOW_SIZE


def rings_and_data_are_in_the_window(setup):
    # Without indirect descriptors the ring itself still names every buffer of the last requests.
    drive = setup.drive("iommu_platform=on", "indirect_desc=off")
    with Machine(setup, "disk", [EXIT, WINDOW, "swiotlb=noforce"], drive) as machine:
        machine.said("test: done", 240)
        machine.ask("stop")
        total = f"{fnv1a(setup.content):016x}"
        assert f"disk bytes={DISK_BYTES} sum={total}" in machine.output(), machine.output()
        assert "parallel bad=0" in machine.output(), machine.output()
        assert f"rewritten sum={total}" in machine.output(), machine.output()

        device = next(d["path"] for d in machine.ask("x-query-virtio") if d["name"] == "virtio-blk")
        ring = machine.ask("x-query-virtio-queue-status", path=device, queue=0)
        for part in ("desc", "avail", "used"):
            assert in_window(ring[f"vring-{part}"]), f"{part} ring at {ring[f'vring-{part}']:#x}"
        seen = 0
        for index in range(ring["vring-num"]):
            element = machine.ask("x-query-virtio-queue-element", path=device, queue=0, index=index)
            for buffer in element["descs"]:
                assert in_window(buffer["addr"], buffer["len"]), f"buffer at {buffer['addr']:#x}"
                seen += 1
        assert seen >= 2 * ring["vring-num"], f"only {seen} buffers seen"

        copy = Path(machine.directory.name, "window")
        machine.ask("pmemsave", val=WINDOW_BASE, size=WINDOW_SIZE, filename=str(copy))
        assert setup.content[:4096] in copy.read_bytes(), "no disk data in the window"


def unused_window_stays_untouched(setup):
    with Machine(setup, "stay", [EXIT, WINDOW], setup.drive("iommu_platform=on")) as machine:
        machine.said("test: done")
        touched = machine.touched(WINDOW_BASE, WINDOW_SIZE)
        assert 0 < touched <= 128 << 10, f"{touched >> 10} KiB of the window touched at boot"


def one_reader_stays_low_in_the_window(setup):
    with Machine(setup, "read", [EXIT, WINDOW], setup.drive("iommu_platform=on")) as machine:
        machine.said(f"disk bytes={DISK_BYTES} sum={fnv1a(setup.content):016x}")
        touched = machine.touched(WINDOW_BASE, WINDOW_SIZE)
        # One request of 1 MiB at a time: itself, its descriptors, the ring.
        assert touched <= 1280 << 10, f"{touched >> 10} KiB of the window touched by one reader"


def memory_between_sections_stays_untouched(setup):
    with Machine(setup, "stay", [EXIT, WINDOW]) as machine:
        machine.said("test: done")
        for base, size in gaps(setup.kernel):
            touched = machine.touched(base, size)
            assert touched <= size // 2, f"{touched >> 10} of {size >> 10} KiB touched at {base:#x}"


def ordinary_devices_leave_the_window_alone(setup):
    with Machine(setup, "disk", [EXIT, WINDOW], setup.drive()) as machine:
        machine.said("test: done", 240)
        copy = Path(machine.directory.name, "window")
        machine.ask("pmemsave", val=WINDOW_BASE, size=WINDOW_SIZE, filename=str(copy))
        assert not any(copy.read_bytes()), "something wrote to the window"


def window_device_without_window_fails_by_name(setup):
    with Machine(setup, "disk", [EXIT], setup.drive("iommu_platform=on")) as machine:
        machine.said("virtio-mmio.*needs the I/O window")
        machine.said("test: no disk")


def bad_windows_are_refused(setup):
    bad = {"0x800000": "expected BASE,SIZE", "0x800000,": "expected BASE,SIZE",
           "0x800000,0x200000,1": "expected BASE,SIZE", "0x801000,0x200000": "steps of",
           "0x800000,0x1000": "steps of", "0x40000000,0x200000": "not all RAM",
           "0xfffffffffff00000,0x100000": "not all RAM|steps of", "0x1000000,0x200000": "in use"}
    for value, message in bad.items():
        with Machine(setup, "disk", [EXIT, f"rundlet.window={value}"], setup.drive("iommu_platform=on")) as machine:
            machine.said(f"rundlet.window: .*({message})")
            machine.said("needs the I/O window")
            machine.said("test: no disk")


def a_reseed_renews_numbers_and_keeps_connections(setup):
    with Machine(setup, "renew", [EXIT]) as machine:
        assert machine.ended() == POWER_OFF
        assert "test: done failed=0" in machine.output(), machine.output()


def copies_differ_once_they_are_renewed(setup):
    """The same machine, three times: twice as it is, and twice told that it is a copy."""
    with Machine(setup, "copy", [EXIT]) as original:
        original.said("test: waiting")
        saved = Path(original.directory.name, "saved")
        original.save(saved)
        said = []
        for line in ("go", "go", "renew one", "renew two"):
            with Machine(setup, "copy", [EXIT], ["-incoming", f"file:{saved}"]) as copy:
                copy.go_on()
                copy.type(line)
                found = copy.said(r"sequence=(\d+)\+(\d+) timestamp=(\d+)\+(\d+) random=([0-9a-f]{32})")
                assert copy.ended() == POWER_OFF and "failed=0" in copy.output(), copy.output()
                said.append(([int(number) for number in found.groups()[:4]], found[5]))

    def shared(one, other):
        """Which of sequence number and timestamp offset two copies have in common."""
        parts = ((one[at], one[at + 1], other[at], other[at + 1]) for at in (0, 2))
        return [(a - b) % 2**32 <= b_width or (b - a) % 2**32 <= a_width for a, a_width, b, b_width in parts]

    (plain, random), (plain_too, _), (first, random_1), (second, random_2) = said
    assert shared(plain, plain_too) == [True, True], said
    for one, other in ((plain, first), (plain, second), (first, second)):
        assert shared(one, other) == [False, False], said
    assert len({random, random_1, random_2}) == 3, said


TESTS = [boots_and_powers_off, restart_is_told, halt_ends_the_machine, panic_is_told_after_its_message,
         early_panic_is_told, without_exit_port_a_restart_still_resets, quiet_by_default,
         all_features_with_four_cpus, sixteen_cpus, rings_and_data_are_in_the_window,
         unused_window_stays_untouched, one_reader_stays_low_in_the_window,
         memory_between_sections_stays_untouched,
         ordinary_devices_leave_the_window_alone, window_device_without_window_fails_by_name,
         bad_windows_are_refused, a_reseed_renews_numbers_and_keeps_connections,
         copies_differ_once_they_are_renewed]


def main():
    parser = argparse.ArgumentParser()
    for name in ("--qemu", "--kernel", "--init"):
        parser.add_argument(name, required=True)
    parser.add_argument("names", nargs="*", metavar="TEST")
    arguments = parser.parse_args()
    known = {test.__name__: test for test in TESTS}
    for name in arguments.names:
        if name not in known:
            sys.exit(f"no test '{name}'; there are: {' '.join(known)}")

    failed = 0
    chosen = [known[name] for name in arguments.names] or TESTS
    with tempfile.TemporaryDirectory(prefix="guest-kernel-") as directory:
        setup = Setup(arguments, directory)
        for test in chosen:
            started = time.monotonic()
            try:
                test(setup)
                verdict = "ok"
            except AssertionError as error:
                failed += 1
                verdict = f"FAILED\n{error}"
            print(f"{test.__name__} ({time.monotonic() - started:.1f} s): {verdict}", flush=True)
    print(f"guest-kernel: {len(chosen) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
