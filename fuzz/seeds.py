#!/usr/bin/env python3
"""Writes seeds/: for each target a few inputs that reach deep code on the first execution.

The byte programs are those that the targets read (see `Input` in src/lib.rs); `spec` seeds are the
JSON they look like. Run it after changing how a target reads its input.
"""

import json
import pathlib
import struct

HERE = pathlib.Path(__file__).parent / "seeds"
USUAL = b"\x00"  # Input::mostly: the usual value


def save(target, name, data):
    folder = HERE / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


# vsock_packet

REQUEST, RESPONSE, RST, SHUTDOWN, RW, UPDATE, ASK = range(7)
SERVED, READY, DIALLED = 0, 80, 100


def packet(ports, op, size=0, flags=0, guest=0, cut=0, grant=18):
    return (bytes([0, ports, guest, op]) + USUAL + bytes([size, grant, 0]) + USUAL * 4
            + bytes([flags]) + USUAL * 2 + bytes([cut]))


def buffers(count):
    return bytes([40, count - 1])


def dial(port):
    return bytes([53, port])


ANSWER, ACCEPT, RESTART = bytes([59]), bytes([88]), bytes([104, 1])


def host_writes(size, index=0):
    return bytes([65]) + struct.pack("<HB", size, index)


def host_reads(size, index=0):
    return bytes([75]) + struct.pack("<HB", size, index)


def host_ends(how, index=0):
    return bytes([83, how, index])


EVENT_IDX = b"\x01"
opened = buffers(8) + dial(1) + ANSWER
save("vsock_packet", "host-dials", EVENT_IDX + opened + host_reads(99) + host_writes(500)
     + packet(DIALLED, RW, 40) + host_reads(99) + packet(DIALLED, SHUTDOWN, flags=3))
save("vsock_packet", "guest-dials", EVENT_IDX + buffers(8) + packet(SERVED, REQUEST) + ACCEPT
     + packet(SERVED, RW, 250, cut=9) + host_reads(9999) + host_writes(100)
     + packet(SERVED, UPDATE) + host_ends(2) + packet(SERVED, RST))
save("vsock_packet", "ready", b"\x00" + buffers(2) + packet(READY, REQUEST))
save("vsock_packet", "backlog", EVENT_IDX + opened + packet(DIALLED, RW, 255) * 3
     + host_reads(60000) * 4 + packet(DIALLED, SHUTDOWN, flags=3) + host_reads(60000) * 2)
save("vsock_packet", "half-close", b"\x00" + opened + host_ends(1) + buffers(8)
     + packet(DIALLED, RW, 10) + packet(DIALLED, SHUTDOWN, flags=2) + host_reads(10)
     + packet(DIALLED, RST))
save("vsock_packet", "starved", EVENT_IDX + opened + packet(DIALLED, UPDATE, grant=3)
     + host_writes(5000) + buffers(8) + packet(DIALLED, ASK) + packet(DIALLED, UPDATE, grant=12)
     + buffers(8) * 2)
save("vsock_packet", "restart", EVENT_IDX + opened + host_writes(40) + RESTART + opened
     + bytes([101, 1, 0, 0x80]) + RESTART + opened)
save("vsock_packet", "strays", b"\x00" + packet(READY, RW, 3) * 3 + packet(SERVED, RST) + buffers(8))

# mmio_registers

SET_UP = b"\x00" + bytes([120])


def register(machine, index, value):
    return bytes([machine, 0, index, value]) + USUAL


def bring_up(machine, queues, event_idx=True):
    return (bytes([machine, 120]) + USUAL * 2 + bytes([0x20 if event_idx else 0]) + USUAL * 2 + USUAL
            + USUAL * 5 * queues + USUAL)


def chain(machine, queue, slot, buffer, available):
    return (bytes([machine, 150, queue, slot, buffer]) + USUAL * 4 + bytes([available]) + USUAL)


def turn(machine=0):
    return bytes([machine, 210])


save("mmio_registers", "rng", bring_up(0, 1) + b"".join(chain(0, 0, n, n, n + 1) + turn()
                                                        for n in range(4)))
save("mmio_registers", "vsock", bring_up(1, 3, False) + chain(1, 0, 0, 0, 1) + chain(1, 1, 1, 1, 1)
     + turn() + register(1, 8, 0) + bring_up(1, 3) + turn())
save("mmio_registers", "both", bring_up(0, 1) + bring_up(1, 3) + chain(0, 0, 0, 0, 1) + turn() * 3)
save("mmio_registers", "odd-accesses", bytes([0, 80]) + struct.pack("<HB", 0x70, 3) + b"abc"
     + bytes([1, 80]) + struct.pack("<HB", 0x101, 8) + b"abcdefgh"
     + bytes([0, 100]) + struct.pack("<HB", 0xffc, 8) + register(0, 15, 7) + register(1, 8, 128))

# blk_request

IN, OUT, FLUSH, GET_ID, DISCARD, ZEROES = range(6)


def request(kind, sector=0, data=b"", header_cut=0, indirect=0, drain=1):
    return (bytes([0, kind, sector]) + USUAL + bytes([header_cut]) + data + bytes([0, indirect])
            + (USUAL if indirect == 1 else b"") + bytes([drain]))


def segments(*pieces):
    body = b"".join(bytes([at]) + bytes([size]) + USUAL * 2 + b"\x00" for at, size in pieces)
    return bytes([len(pieces)]) + body


def ranges(*pieces):
    body = b"".join(bytes([sector]) + USUAL + bytes([count]) + USUAL + bytes([flag]) + USUAL
                    for sector, count, flag in pieces)
    return bytes([len(pieces) - 1]) + body + USUAL


IMAGE, LAYER = 0x20 | 5, 0x20 | 8 | 5
save("blk_request", "read", bytes([IMAGE]) + request(IN, 3, segments((0, 1)))
     + request(IN, 70, segments((4, 2), (8, 1)), indirect=1) + request(IN, 78, segments((0, 1))))
save("blk_request", "read-cold", bytes([IMAGE | 64]) + b"".join(
    request(IN, n, segments((n, 1)), drain=0) for n in range(6)) + request(FLUSH, 0, segments()))
save("blk_request", "write", bytes([LAYER]) + request(OUT, 3, segments((0, 1)))
     + request(OUT, 9, segments((0, 1), (90, 4)), header_cut=205) + request(FLUSH, 0, segments())
     + request(IN, 3, segments((60, 1))))
save("blk_request", "ranges", bytes([LAYER]) + request(DISCARD, 0, ranges((0, 8, 0), (16, 4, 0)))
     + request(ZEROES, 0, ranges((4, 8, 1), (70, 8, 0))) + request(ZEROES, 0, ranges((79, 15, 0))))
save("blk_request", "id", bytes([IMAGE & ~0x20]) + request(GET_ID, 0, segments((0, 40)))
     + request(GET_ID, 0, segments((0, 32))) + request(OUT, 0, segments((0, 1))))
save("blk_request", "batch", bytes([LAYER | 16]) + b"".join(
    request(OUT, n, segments((n, 1)), drain=0) for n in range(6)) + request(FLUSH, 0, segments()))

# spec

sandbox = {
    "kernel": {"path": "/k/vmlinux", "initrd": "/k/initrd.cpio", "cmdline": "rundlet.root=/dev/vda"},
    "memory_mib": 128, "vcpus": 1, "window_mib": 2,
    "disks": [{"id": "root", "socket": "/r/root.sock", "read_only": True, "queues": 1,
               "queue_size": 128}],
    "vsock": {"cid": 3, "socket": "/r/vsock.sock"},
    "console": {"path": "/r/console.log", "limit_bytes": 1048576},
}
smallest = {"kernel": {"path": "/k"}, "memory_mib": 64, "vcpus": 16, "console": {"fd": 5}}
backend = {
    "listeners": [
        {"socket": "/r/root.sock", "disk": {"image": {"path": "/i/x.erofs"}}},
        {"socket": "/r/scratch.sock", "disk": {"scratch": {
            "template": "/t/ext4-1024.img", "directory": "/s", "flush": "volatile"}}},
    ],
    "queues": 1,
}
for name, value in [
    ("sandbox", sandbox), ("smallest", smallest), ("backend", backend),
    ("large", {**smallest, "memory_mib": 65536, "window_mib": 8}),
    ("bad-field", {**smallest, "memory": 1}), ("bad-limit", {**smallest, "vcpus": 17}),
    ("pause", {"pause": {}}), ("status", {"status": {}}),
    ("capture", {"capture": {"directory": "/var/lib/x", "binding": {"kernel": "00ff"}}}),
]:
    save("spec", name, json.dumps(value).encode())

# clone_request: how many descriptors, and the datagram

clone = {"id": "job-1", "fds": ["cgroup", "lifeline", "stdout", "stderr", "console"], "spec": {
    "binding": {"kernel": "00ff", "initrd": "01", "image": "02"},
    "disks": [{"id": "root", "socket": "/r/root.sock"}, {"id": "scratch", "socket": "/r/s.sock"}],
    "vsock": {"socket": "/r/vsock.sock"},
    "console": {"path": "/r/console.log", "limit_bytes": 1048576},
}}
bare = {"id": "x", "spec": {"binding": {}}}
for name, count, value in [
    ("whole", 5, clone), ("bare", 0, bare), ("too-few", 4, clone), ("too-many", 7, clone),
    ("twice", 2, {**bare, "fds": ["stdout", "stdout"]}),
    ("foreign-number", 0, {**bare, "spec": {"binding": {}, "console": {"fd": 3}}}),
]:
    save("clone_request", name, bytes([count]) + json.dumps({"clone": value}).encode())
boot = {"id": "b", "spec": {"kernel": {"path": "/k"}, "memory_mib": 128, "vcpus": 1}, "fds": ["console"]}
save("clone_request", "boot", bytes([1]) + json.dumps({"boot": boot}).encode())

# template_state

GOLDEN = HERE.parents[1] / "vmm/tests/data/epoch-1.state"
whole = GOLDEN.read_bytes()
save("template_state", "whole", whole)
save("template_state", "body", whole[128:])
