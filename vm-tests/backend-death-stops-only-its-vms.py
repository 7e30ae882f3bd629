# A block backend that dies takes its own sandbox with it, at once and with a clear message, and no other.


def start_sandbox(name, seconds):
    machine.succeed(
        f"rm -f /tmp/{name}.*; (set +e; rundlet run debian -- sh -c 'echo up; sleep {seconds}; sha256sum /usr/bin/bash; "
        f"echo fine' >/tmp/{name}.out 2>&1; echo $? >/tmp/{name}.status) >/dev/null 2>&1 &"
    )
    machine.wait_until_succeeds(f"grep up /tmp/{name}.out", timeout=180)
    return machine.succeed("pgrep -n -x rundlet").strip()


doomed = start_sandbox("doomed", 300)
other = start_sandbox("other", 12)
assert doomed != other

with subtest("the sandbox whose backend dies ends, with our error code and a message that names the cause"):
    machine.succeed(f"pkill -KILL -x -P {doomed} vhost-blk-ro")
    machine.wait_for_file("/tmp/doomed.status", timeout=30)
    shown = machine.succeed("cat /tmp/doomed.out")
    assert machine.succeed("cat /tmp/doomed.status").strip() == "125", shown
    assert "backend" in shown and "panicked" not in shown, shown

with subtest("its VMM is gone as well"):
    machine.wait_until_fails(f"pgrep -x -P {doomed} rundlet-vmm", timeout=30)

with subtest("twin: the other sandbox goes on, reads its disk and ends as it should"):
    machine.wait_for_file("/tmp/other.status", timeout=180)
    shown = machine.succeed("cat /tmp/other.out")
    assert machine.succeed("cat /tmp/other.status").strip() == "0", shown
    assert shown.endswith("fine\n"), shown

with subtest("and new sandboxes start"):
    machine.succeed("rundlet run debian -- true")
