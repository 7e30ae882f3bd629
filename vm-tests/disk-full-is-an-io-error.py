# When the host's disk is full the guest gets an I/O error; what it wrote before stays readable, and nobody crashes.
# worker: fresh

machine.succeed("rundlet run debian -- true")  # makes the template of the scratch disk

program = r"""
import errno, hashlib, os
kept = os.urandom(8 << 20)
with open("/kept", "wb") as file:
    file.write(kept)
    os.fsync(file.fileno())
failure = None
try:
    with open("/flood", "wb") as file:
        for _ in range(96):
            file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())
except OSError as error:
    failure = errno.errorcode[error.errno]
with open("/proc/sys/vm/drop_caches", "w") as file:
    file.write("3")
with open("/kept", "rb") as file:
    same = hashlib.sha256(file.read()).digest() == hashlib.sha256(kept).digest()
print(failure, same)
"""

machine.succeed("cat >/tmp/flood.py <<'END'\n" + program + "\nEND")
run = "rundlet run -i debian -- python3 - </tmp/flood.py 2>&1"

with subtest("twin: with room on the host's disk the same program succeeds"):
    shown = machine.succeed(run)
    assert shown.split() == ["None", "True"], shown

with subtest("with 32 MiB left the guest sees an I/O error, and keeps its earlier data"):
    machine.succeed(
        "free=$(df --output=avail -B1M /var/lib/rundlet | tail -n 1); fallocate -l $((free - 32))M /var/lib/rundlet/filler"
    )
    shown = machine.succeed(run)
    assert shown.split() == ["EIO", "True"], shown

with subtest("the space comes back, and sandboxes write again"):
    machine.succeed("rm /var/lib/rundlet/filler")
    assert machine.succeed(run).split() == ["None", "True"]
