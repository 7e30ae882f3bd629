# A template that does not fit this host, this build or its own checksums is refused before anything of a sandbox is
# started, with one sentence; `rundlet run` then builds it again, once, and says so.
# timeout: 900
import base64
import json
import shlex
import struct

# Header of `state`, docs/template-format.md: offsets of the epoch, the VMM build, the CPU's signature and the sum over all before it.
EPOCH, BUILD, SIGNATURE, SUM = 8, 80, 96, 120
MASK = (1 << 64) - 1
# The beginning of XXH3's own secret, as much as a sum over 120 bytes needs.
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248e"
    "e03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d"
    "8a51e04bcdb45931c89f7ec9d9787364"
)
PRIME64_1, PRIME_MX1 = 0x9E3779B185EBCA87, 0x165667919E3779F9


def word(data, at):
    return struct.unpack_from("<Q", data, at)[0]


def xxh3(data):
    """XXH3_64bits for 17 to 128 bytes, seed 0."""

    def mix(at, secret):
        product = (word(data, at) ^ word(SECRET, secret)) * (word(data, at + 8) ^ word(SECRET, secret + 8))
        return (product & MASK) ^ (product >> 64)

    length = len(data)
    acc = length * PRIME64_1 & MASK
    for step in reversed(range((length - 1) // 32 + 1)):
        acc = (acc + mix(16 * step, 32 * step) + mix(length - 16 * (step + 1), 32 * step + 16)) & MASK
    acc ^= acc >> 37
    acc = acc * PRIME_MX1 & MASK
    return acc ^ acc >> 32


def patched(at, new):
    """A `state` whose header says something else, with the sum that belongs to it."""
    header = bytearray(state[:128])
    header[at : at + len(new)] = new
    struct.pack_into("<Q", header, SUM, xxh3(bytes(header[:SUM])))
    return bytes(header) + state[128:]


def write(path, data):
    machine.succeed(f"base64 -d <<<{base64.b64encode(data).decode()} >{path}")


def clone(change, binding=None):
    """A clone of a copy of the template, after a change; its disks' sockets are nowhere."""
    machine.succeed(f"rm -rf /var/lib/rundlet/copy; cp -a --reflink=always {template}/. /var/lib/rundlet/copy; {change}")
    spec = {
        "binding": binding or built["binding"],
        "disks": [{"id": name, "socket": f"/tmp/no-such-{name}.sock"} for name in ("root", "scratch")],
        "vsock": {"socket": "/tmp/clone.sock"},
    }
    command = f"timeout 60 rundlet-vmm clone --template /var/lib/rundlet/copy --spec - <<<{shlex.quote(json.dumps(spec))}"
    status, shown = machine.execute(f"{command} 2>/dev/null")
    return status, json.loads(shown.splitlines()[-1])


def refused(reason, status, word, change, **options):
    got, event = clone(change, **options)
    assert (got, event["reason"]) == (status, reason), (got, event)
    assert word in event["message"] and "\n" not in event["message"], event


machine.succeed("rundlet template build --memory 128 debian base")
template = machine.succeed("readlink -f /var/lib/rundlet/templates/base:latest").strip()
built = json.loads(machine.succeed("rundlet template inspect base"))
state = base64.b64decode(machine.succeed(f"base64 -w0 {template}/state"))
assert patched(EPOCH, state[EPOCH : EPOCH + 4]) == state, "the sum is another than documented"

with subtest("twin: untouched, it is taken, and only then are the sockets looked for"):
    status, event = clone("true")
    assert status not in (0, 3, 4) and "no-such-root" in event["message"], (status, event)

with subtest("another epoch"):
    write("/tmp/state", patched(EPOCH, struct.pack("<I", 99)))
    refused("template_stale", 3, "epoch 99", "cp /tmp/state /var/lib/rundlet/copy/state")

with subtest("another processor"):
    write("/tmp/state", patched(SIGNATURE, struct.pack("<I", 0x12345678)))
    refused("template_stale", 3, "CPU", "cp /tmp/state /var/lib/rundlet/copy/state")

with subtest("another build of the VMM"):
    write("/tmp/state", patched(BUILD, b"\x55" * 8))
    refused("template_stale", 3, "build", "cp /tmp/state /var/lib/rundlet/copy/state")

for label in ("kernel", "initrd", "image"):
    with subtest(f"another {label}"):
        refused("template_stale", 3, label, "true", binding={**built["binding"], label: "sha256-another"})

for name in ("state", "memory", "window"):
    place = f"/var/lib/rundlet/copy/{name}"
    with subtest(f"{name}: truncated, missing, longer, one bit flipped in its data"):
        refused("template_damaged", 4, name, f"truncate -s -1 {place}")
        refused("template_damaged", 4, name, f"truncate -s 4096 {place}")
        refused("template_damaged", 4, name, f"rm {place}")
        refused("template_damaged", 4, name, f"truncate -s +4096 {place}")
        # The first byte that is data; of the state one in the middle.
        at = len(state) // 2 if name == "state" else "os.lseek(f.fileno(), 0, os.SEEK_DATA)"
        flip = f"import os; f = open('{place}', 'r+b'); at = {at}; f.seek(at); byte = f.read(1)[0]; f.seek(at); "
        flip += "f.write(bytes([byte ^ 1]))"
        refused("template_damaged", 4, name, f'python3 -c "{flip}"')

with subtest("no sandbox was ever begun"):
    machine.succeed("test ! -e /tmp/clone.sock")
    machine.fail("pgrep -x rundlet-vmm")


def id_of():
    return json.loads(machine.succeed("rundlet template inspect base"))["id"]


with subtest("`rundlet run` builds such a template again, says so in one line, and runs"):
    machine.succeed(f"cp /tmp/state {template}/state")
    status, shown = machine.execute("rundlet run --template base -- echo fine 2>/tmp/errors")
    errors = machine.succeed("cat /tmp/errors")
    assert (status, shown) == (0, "fine\n"), (status, shown, errors)
    assert len(errors.splitlines()) == 1 and "base:latest is built again" in errors and "build" in errors, errors
    assert id_of() != built["id"]

with subtest("once: the next run is quiet and uses the same one"):
    made = id_of()
    assert machine.succeed("rundlet run --template base -- echo fine 2>&1") == "fine\n"
    assert id_of() == made
    machine.succeed("test $(ls /var/lib/rundlet/templates/builds | wc -l) = 1")

with subtest("another guest kernel's template, as after an update"):
    machine.succeed(
        "mkdir /tmp/guest; cp /opt/rundlet/share/rundlet/* /tmp/guest; echo >>/tmp/guest/initrd.cpio"
    )
    status, shown = machine.execute("RUNDLET_GUEST=/tmp/guest rundlet run --template base -- echo fine 2>&1")
    assert status == 0 and "built again" in shown and "initrd" in shown and shown.endswith("fine\n"), (status, shown)

machine.succeed("rundlet template rm base; rm -rf /tmp/guest /tmp/state /tmp/errors /var/lib/rundlet/copy")
