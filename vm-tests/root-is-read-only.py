# No sandbox can change the image that all of them share: not through its files, not through the block device.

image = "/var/lib/rundlet/images/*.erofs"
before = machine.succeed(f"sha256sum {image}")

with subtest("a sandbox may change its own view of every file"):
    shown = machine.succeed(
        "rundlet run debian -- sh -c 'rm /usr/bin/cat && echo changed >/etc/hostname && echo new >/usr/new && "
        "while read line; do echo $line; done </etc/hostname; ls /usr/new /usr/bin/cat 2>&1 || true'"
    )
    assert "changed" in shown and "/usr/new" in shown and "cannot access '/usr/bin/cat'" in shown, shown

with subtest("the next sandbox sees the image as it was"):
    machine.succeed("rundlet run debian -- sh -c 'test -x /usr/bin/cat && test ! -e /usr/new'")

with subtest("the block device is read-only, whatever root in the guest does to it"):
    shown = machine.succeed(
        "rundlet run debian -- sh -c 'cat /sys/block/vda/ro; blockdev --setrw /dev/vda; "
        "dd if=/dev/zero of=/dev/vda bs=4096 count=1 oflag=direct && echo WRITTEN; blkdiscard -f /dev/vda && echo DISCARDED; "
        "dd if=/dev/vda of=/dev/null bs=4096 count=1 && echo still readable' 2>&1"
    )
    assert shown.startswith("1\n") and "still readable" in shown, shown
    assert "WRITTEN" not in shown and "DISCARDED" not in shown, shown

with subtest("twin: the scratch device takes what the sandbox writes"):
    # The seventh figure of a disk's statistics counts sectors written.
    for disk, takes in (("vda", False), ("vdb", True)):
        shown = machine.succeed(
            "rundlet run debian -- sh -c 'head -c 4000000 /dev/urandom >/data && sync && "
            f"cat /sys/block/{disk}/ro /sys/block/{disk}/stat'"
        ).split()
        assert (shown[0], int(shown[7]) > 4000) == (("0", True) if takes else ("1", False)), (disk, shown)

with subtest("the backend itself holds the image without the right to write"):
    machine.succeed("(rundlet run debian -- sleep 300) >/dev/null 2>&1 &")
    machine.wait_until_succeeds("pgrep -x vhost-blk-ro", timeout=60)
    machine.wait_until_succeeds("ls -l /proc/$(pgrep -x vhost-blk-ro)/fd | grep erofs", timeout=60)
    modes = machine.succeed("ls -l /proc/$(pgrep -x vhost-blk-ro)/fd | grep erofs | cut -c1-4")
    assert set(modes.split()) == {"lr-x"}, modes
    machine.succeed("kill -TERM $(pgrep -x rundlet)")
    machine.wait_until_fails("pgrep -x 'rundlet-vmm|vhost-blk-ro'", timeout=120)

with subtest("not a byte of the image has changed"):
    assert machine.succeed(f"sha256sum {image}") == before
    machine.succeed("test $(stat -c %a /var/lib/rundlet/images/*.erofs | grep -c '[2367]') = 0")
