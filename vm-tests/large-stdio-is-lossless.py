# 64 MiB go in and come out byte for byte; standard output and error do not mix; an early end hangs nobody.
# timeout: 900

machine.succeed("dd if=/dev/urandom of=/tmp/large bs=1M count=64 status=none")

with subtest("64 MiB through a program, both ways at once"):
    machine.succeed("rundlet run -i debian -- cat </tmp/large >/tmp/back")
    machine.succeed("cmp /tmp/large /tmp/back")

with subtest("the guest saw the same bytes, all of them"):
    expected = machine.succeed("sha256sum </tmp/large")
    assert machine.succeed("rundlet run -i debian -- sha256sum </tmp/large") == expected

with subtest("twin: one changed byte is noticed"):
    machine.succeed("printf x | dd of=/tmp/back bs=1 seek=33554432 conv=notrunc status=none")
    machine.fail("cmp /tmp/large /tmp/back")

with subtest("standard output and standard error stay apart"):
    machine.succeed(
        "rundlet run debian -- sh -c 'for i in $(seq 2000); do echo out $i; echo err $i >&2; done' "
        ">/tmp/out 2>/tmp/err"
    )
    for name in ("out", "err"):
        machine.succeed(f"for i in $(seq 2000); do echo {name} $i; done | cmp - /tmp/{name}")

with subtest("a program that stops reading does not hang the run"):
    shown = machine.succeed("timeout 120 rundlet run -i debian -- head -c 5 </tmp/large | wc -c")
    assert shown.strip() == "5", shown

with subtest("without -i the program's standard input is empty"):
    assert machine.succeed("rundlet run debian -- wc -c </tmp/large").strip() == "0"

with subtest("a reader that goes away ends the flood"):
    status, shown = machine.execute("set +o pipefail; timeout 120 rundlet run debian -- yes | head -n 1; echo ${PIPESTATUS[0]}")
    first, code = shown.split()
    assert first == "y" and code != "124", shown

machine.succeed("rm -f /tmp/large /tmp/back /tmp/out /tmp/err")
