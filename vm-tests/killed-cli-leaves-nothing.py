# However `rundlet run` ends, no process, socket, file or mount of the sandbox outlives it by more than a moment.

machine.succeed("rundlet run debian -- true")  # makes what stays: the store's folders, the scratch template
before = machine.succeed("leftovers")


def start_sandbox():
    machine.succeed(
        "rm -f /tmp/run.out; (set +e; setsid rundlet run debian -- sh -c 'echo up; exec sleep 300' >/tmp/run.out 2>&1; "
        "echo $? >/tmp/run.status) >/dev/null 2>&1 &"
    )
    machine.wait_until_succeeds("grep up /tmp/run.out", timeout=180)


def nothing_is_left():
    for _ in range(30):
        now = machine.succeed("leftovers")
        if now == before:
            return
        machine.sleep(1)
    lines = set(now.splitlines()) - set(before.splitlines())
    raise AssertionError("left behind: " + "; ".join(sorted(lines)) if lines else f"gone: {before} but {now}")


with subtest("twin: while a sandbox runs there is a lot to see"):
    start_sandbox()
    during = machine.succeed("leftovers")
    for kind in ("process rundlet-vmm", "process vhost-blk-ro", "socket ", "file /run/rundlet/", "open "):
        assert kind in during and kind not in before, (kind, during)

with subtest("SIGKILL for the CLI"):
    machine.succeed("pkill -KILL -x rundlet")
    nothing_is_left()

with subtest("SIGKILL for the CLI and its janitor together: the next run sweeps"):
    start_sandbox()
    machine.succeed("pkill -KILL -f '^rundlet-janitor'; pkill -KILL -x rundlet")
    machine.wait_until_fails("pgrep -x 'rundlet-vmm|vhost-blk-ro'", timeout=120)
    machine.succeed("rundlet run debian -- true")
    nothing_is_left()

with subtest("Ctrl-C twice, against a program that ignores it"):
    machine.succeed(
        "rm -f /tmp/run.out /tmp/run.status; (set +e; setsid rundlet run debian -- sh -c "
        "'trap \"\" INT; echo up; while :; do sleep 1; done' >/tmp/run.out 2>&1; echo $? >/tmp/run.status) "
        ">/dev/null 2>&1 &"
    )
    machine.wait_until_succeeds("grep up /tmp/run.out", timeout=180)
    machine.succeed("pkill -INT -x rundlet; sleep 1; pkill -INT -x rundlet")
    machine.wait_for_file("/tmp/run.status", timeout=120)
    assert machine.succeed("cat /tmp/run.status").strip() != "0"
    nothing_is_left()

with subtest("SIGHUP, as when the terminal closes"):
    start_sandbox()
    machine.succeed("pkill -HUP -x rundlet")
    nothing_is_left()

with subtest("SIGKILL during the boot"):
    machine.succeed("(setsid rundlet run debian -- true >/dev/null 2>&1) >/dev/null 2>&1 &")
    machine.wait_until_succeeds("pgrep -x rundlet-vmm", timeout=120)
    machine.succeed("pkill -KILL -x rundlet")
    nothing_is_left()
