# An import that is killed leaves no image and no rubbish; one that ends gives the same image on every machine.

# The store that the driver filled came from the same tar file, on another machine.
expected = machine.succeed("rundlet image ls --json")
before = machine.succeed("find /var/lib/rundlet -not -path '*/scratch*' | sort")

with subtest("killed half-way: nothing new is listed, and the space is free"):
    machine.succeed("(setsid rundlet image import /opt/rundlet/test/debian.tar half >/tmp/import.log 2>&1) >/dev/null 2>&1 &")
    machine.wait_until_succeeds("find /var/lib/rundlet/tmp -size +1M | grep .", timeout=120)
    machine.succeed("pkill -KILL -x rundlet; sleep 1; pkill -KILL mkfs.erofs || true")
    assert machine.succeed("rundlet image ls --json") == expected
    machine.fail("rundlet run half -- true")

with subtest("a whole import, in this worker: the same bytes make the same image"):
    machine.succeed("rundlet image import /opt/rundlet/test/debian.tar again", timeout=300)
    machine.succeed("rundlet run again -- true")
    digests = machine.succeed("sha256sum /var/lib/rundlet/images/*.erofs | cut -d' ' -f1 | sort -u | wc -l")
    assert digests.strip() == "1", digests

with subtest("removing the second name takes nothing from the first"):
    machine.succeed("rundlet image rm again")
    machine.fail("rundlet run again -- true")
    assert machine.succeed("rundlet image ls --json") == expected
    assert machine.succeed("find /var/lib/rundlet -not -path '*/scratch*' | sort") == before

with subtest("an image in use is not removed"):
    machine.succeed("(setsid rundlet run debian -- sleep 300 >/dev/null 2>&1) >/dev/null 2>&1 &")
    machine.wait_until_succeeds("pgrep -x rundlet-vmm", timeout=120)
    status, shown = machine.execute("rundlet image rm debian 2>&1")
    assert status != 0 and "in use" in shown, (status, shown)
    machine.succeed("kill -TERM $(pgrep -x rundlet)")
    machine.wait_until_fails("pgrep -x 'rundlet|rundlet-vmm|vhost-blk-ro'", timeout=120)
    machine.succeed("rundlet run debian -- true")

with subtest("twin: what is no archive is refused"):
    status, shown = machine.execute("rundlet image import /etc/passwd bad 2>&1")
    assert status != 0 and "/etc/passwd" in shown, (status, shown)
    assert machine.succeed("rundlet image ls --json") == expected
