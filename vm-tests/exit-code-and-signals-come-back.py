# How the program in the sandbox ended is how `rundlet run` ends, and signals reach the program.


def status_of(command, options=""):
    return machine.execute(f"rundlet run {options} debian -- {command}")[0]


with subtest("exit codes"):
    for code in (0, 1, 42, 255):
        assert status_of(f"sh -c 'exit {code}'") == code, code

with subtest("a program that a signal ended: 128 and the signal's number"):
    assert status_of("sh -c 'kill -KILL $$'") == 137
    assert status_of("sh -c 'kill -SEGV $$'") == 139

with subtest("a program that cannot be found or executed: 127 and 126"):
    assert status_of("no-such-program") == 127
    assert status_of("/etc/passwd") == 126

with subtest("a program that takes longer than it may: 124"):
    assert status_of("sleep 300", "--timeout 3") == 124

for name in ("INT", "TERM"):
    with subtest(f"SIG{name} for the CLI is one for the program, which may answer as it likes"):
        machine.succeed(
            "rm -f /tmp/signals; (set +e; setsid rundlet run debian -- sh -c "
            f"'trap \"echo caught; exit 9\" {name}; echo armed; while :; do sleep 0.1; done' >/tmp/signals 2>&1; "
            "echo $? >/tmp/signals.status) >/dev/null 2>&1 &"
        )
        machine.wait_until_succeeds("grep armed /tmp/signals", timeout=180)
        machine.succeed("rm -f /tmp/signals.status")
        machine.succeed(f"kill -{name} $(pgrep -x rundlet)")
        machine.wait_for_file("/tmp/signals.status", timeout=120)
        shown = machine.succeed("cat /tmp/signals /tmp/signals.status").split()
        # The shell may say of its `sleep`, which gets the signal as well, that it was terminated.
        assert shown[0] == "armed" and "caught" in shown and shown[-1] == "9", shown
