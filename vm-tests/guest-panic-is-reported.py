# A guest whose kernel panics ends the run at once, with our error code and the kernel's own words.

# Takes 1 MiB after the other: the guest's kernel would refuse a single large request at once.
eater = "exec python3 -c 'eaten = [bytes([1]) * (1 << 20) for _ in range(1024)]'"

with subtest("a panic while a program runs"):
    status, shown = machine.execute(
        f'rundlet run --memory 128 debian -- sh -c "echo 1 >/proc/sys/vm/panic_on_oom && {eater}" 2>&1', timeout=120
    )
    assert status == 125, (status, shown)
    assert "panic" in shown and "out of memory" in shown.lower(), shown

with subtest("a panic before the agent is ready"):
    machine.succeed(
        "rm -rf /tmp/bad && mkdir -p /tmp/bad/bin && cp /bin/busybox /tmp/bad/bin/ && "
        "printf '#!/bin/busybox sh\\nexit 3\\n' >/tmp/bad/init && chmod +x /tmp/bad/init && "
        "cd /tmp/bad && find . | busybox cpio -o -H newc >/tmp/bad.cpio"
    )
    status, shown = machine.execute("rundlet run --initrd /tmp/bad.cpio debian -- true 2>&1", timeout=120)
    assert status == 125, (status, shown)
    assert "panic" in shown and "init" in shown, shown

with subtest("twin: a program that runs out of memory in a guest that survives it is no panic"):
    status, shown = machine.execute(f'rundlet run --memory 128 debian -- sh -c "{eater}" 2>&1', timeout=120)
    assert status == 137, (status, shown)
    assert "panic" not in shown, shown

with subtest("nothing is left of either"):
    machine.wait_until_fails("pgrep -x 'rundlet-vmm|vhost-blk-ro'", timeout=30)
