# What a clone writes, to memory or to disk, is seen by no other clone, and the template's files stay as they are, byte
# for byte.
# timeout: 900

files = "cd /var/lib/rundlet/templates/base:latest && sha256sum state memory window scratch.img"
script = (
    "dd if=/dev/urandom of=/data bs=1M count=8 status=none; echo original >/on-disk; mkdir -p /ram; "
    "mount -t tmpfs none /ram; echo original >/ram/in-memory; dd if=/dev/zero of=/ram/block bs=1M count=16 status=none"
)
machine.succeed(f"rundlet template build --memory 128 debian base -- sh -c '{script}'")
before = machine.succeed(files)
look = "cat /on-disk /ram/in-memory; sha256sum /data /ram/block"
as_built = machine.succeed(f"rundlet run --template base -- sh -c '{look}'")
assert as_built.startswith("original\noriginal\n"), as_built

with subtest("one clone writes everywhere, and keeps running"):
    write = (
        "echo mine >/on-disk; echo mine >/ram/in-memory; dd if=/dev/urandom of=/data bs=1M count=8 conv=notrunc status=none; "
        "dd if=/dev/urandom of=/ram/block bs=1M count=16 conv=notrunc status=none; "
        "dd if=/dev/urandom of=/more bs=1M count=48 status=none; sync; "
    )
    machine.succeed(
        f"rm -f /tmp/writer; (setsid rundlet run --template base -- sh -c '{write}{look}; echo written; exec sleep 600' "
        ">/tmp/writer 2>&1) >/dev/null 2>&1 &"
    )
    machine.wait_until_succeeds("grep written /tmp/writer", timeout=240)

with subtest("twin: it sees its own writes"):
    own = machine.succeed("cat /tmp/writer")
    assert own.startswith("mine\nmine\n") and own.splitlines()[2:4] != as_built.splitlines()[2:4], own

with subtest("a clone made meanwhile sees the template's bytes"):
    assert machine.succeed(f"rundlet run --template base -- sh -c '{look}; test ! -e /more'") == as_built

with subtest("a clone that was there before sees them as well"):
    machine.succeed("rm -f /tmp/reader /tmp/go; mkfifo /tmp/go")
    machine.succeed(
        f"(setsid rundlet run -i --template base -- sh -c 'echo up; read -r line; {look}' </tmp/go >/tmp/reader 2>&1; "
        "echo done >>/tmp/reader) >/dev/null 2>&1 &"
    )
    machine.succeed("exec 3>/tmp/go; timeout 120 sh -c 'until grep -q up /tmp/reader; do sleep 0.2; done'; "
                    f"rundlet run --template base -- sh -c '{write}true'; echo >&3; "
                    "timeout 120 sh -c 'until grep -q done /tmp/reader; do sleep 0.2; done'")
    assert machine.succeed("cat /tmp/reader") == f"up\n{as_built}done\n"

with subtest("the template's files are as they were"):
    machine.succeed("pkill -TERM -x rundlet")
    machine.wait_until_fails("pgrep -x 'rundlet-vmm|vhost-blk-ro'", timeout=120)
    assert machine.succeed(files) == before

with subtest("twin: they are all that was compared"):
    assert len(before.splitlines()) == 4, before

machine.succeed("rundlet template rm base; rm -f /tmp/writer /tmp/reader /tmp/go")
