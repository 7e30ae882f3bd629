# What a sandbox writes is in no other sandbox, has no name on the host, and its space is free again afterwards.

used = "df --output=used -B1M /var/lib/rundlet | tail -n 1"
machine.succeed("rundlet run debian -- true")  # makes the template of the scratch disk
before_files = machine.succeed("find /var/lib/rundlet | sort")
before = int(machine.succeed(used))


def start_writer():
    machine.succeed(
        "rm -f /tmp/writer; (rundlet run debian -- sh -c 'dd if=/dev/urandom of=/secret bs=1M count=48 status=none && "
        "sync && echo written && sleep 300' >/tmp/writer 2>&1) >/dev/null 2>&1 &"
    )
    machine.wait_until_succeeds("grep written /tmp/writer || { cat /tmp/writer; false; }", timeout=240)


with subtest("while the sandbox runs its data takes space and has no name"):
    start_writer()
    during = int(machine.succeed(used))
    assert during >= before + 40, (before, during)
    assert machine.succeed("find /var/lib/rundlet | sort") == before_files

with subtest("another sandbox does not see it"):
    machine.succeed("rundlet run debian -- test ! -e /secret")

with subtest("twin: the sandbox itself does"):
    machine.succeed("rundlet run debian -- sh -c 'echo data >/secret && grep -q data /secret'")

with subtest("it ends in an orderly way, and the space is free"):
    machine.succeed("kill -TERM $(pgrep -x rundlet)")
    machine.wait_until_fails("pgrep -x vhost-blk-ro", timeout=120)
    after = int(machine.succeed(f"sync; {used}"))
    assert after <= before + 2, (before, after)

with subtest("it is killed, VMM and backend and all, and the space is free"):
    start_writer()
    machine.succeed("pkill -KILL -x 'rundlet|rundlet-vmm|vhost-blk-ro'")
    machine.wait_until_fails("pgrep -x 'vhost-blk-ro|rundlet|rundlet-vmm'", timeout=120)
    after = int(machine.succeed(f"sync; {used}"))
    assert after <= before + 2, (before, after)
    assert machine.succeed("find /var/lib/rundlet | sort") == before_files
