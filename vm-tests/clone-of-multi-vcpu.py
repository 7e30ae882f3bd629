# A clone of a template with several processors has all of them: each runs programs, takes its timer, and wakes the others.
# timeout: 900

machine.succeed("rundlet template build --memory 192 --vcpus 3 debian three -- sh -c 'nproc >/built'")


def clone(script, template="three"):
    return machine.succeed(f"rundlet run --template {template} -- sh -c '{script}'", timeout=240)


with subtest("it has as many as the template"):
    assert clone("cat /built; nproc; cat /sys/devices/system/cpu/online").split() == ["3", "3", "0-2"]

with subtest("each of them runs a program, sleeps and wakes up again"):
    shown = clone("for cpu in 0 1 2; do taskset -c $cpu sh -c \"sleep 0.2; awk \\\"{print \\\\\\$39}\\\" /proc/self/stat\"; done")
    assert shown.split() == ["0", "1", "2"], shown

with subtest("they work at the same time, and a program that moves from one to the next is woken on each"):
    program = (
        "import os, threading\n"
        "def turn(cpu, mine, other, rounds):\n"
        "    os.sched_setaffinity(0, {cpu})\n"
        "    for _ in range(rounds):\n"
        "        mine.acquire()\n"
        "        other.release()\n"
        "locks = [threading.Semaphore(0) for _ in range(3)]\n"
        "threads = [threading.Thread(target=turn, args=(n, locks[n], locks[(n + 1) % 3], 200)) for n in range(3)]\n"
        "[thread.start() for thread in threads]\n"
        "locks[0].release()\n"
        "[thread.join() for thread in threads]\n"
        "print(\"round and round\")\n"
    )
    machine.succeed(f"cat >/tmp/turns.py <<'END'\n{program}END")
    shown = machine.succeed('rundlet run --template three -- python3 -c "$(cat /tmp/turns.py)"', timeout=240)
    assert shown == "round and round\n", shown

with subtest("their timers tick and their interrupts arrive: no processor has a count that stands still"):
    count = "grep -E \"LOC|RES|CAL\" /proc/interrupts"
    work = "for cpu in 0 1 2; do taskset -c $cpu sh -c \"i=0; while [ \\$i -lt 20000 ]; do i=\\$((i+1)); done; sleep 0.1\" & done; wait"
    before, after = clone(f"{count}; echo --; {work}; {count}").split("--")
    for line_before, line_after in zip(before.strip().splitlines(), after.strip().splitlines()):
        if line_before.split()[0] == "LOC:":
            ticks = [int(b) - int(a) for a, b in zip(line_before.split()[1:4], line_after.split()[1:4])]
            assert all(tick > 0 for tick in ticks), (line_before, line_after)

with subtest("their clocks agree: a program that hops sees no step back"):
    hop = (
        "import os, time\n"
        "last = 0\n"
        "for n in range(3000):\n"
        "    os.sched_setaffinity(0, {n % 3})\n"
        "    now = time.monotonic_ns()\n"
        "    assert now >= last, (n, last, now)\n"
        "    last = now\n"
        "print(\"forward\")\n"
    )
    machine.succeed(f"cat >/tmp/hop.py <<'END'\n{hop}END")
    shown = machine.succeed('rundlet run --template three -- python3 -c "$(cat /tmp/hop.py)"', timeout=240)
    assert shown == "forward\n", shown

with subtest("twin: a template with one processor makes clones with one"):
    machine.succeed("rundlet template build --memory 128 debian one")
    assert clone("nproc", template="one") == "1\n"

machine.succeed("rundlet template rm three; rundlet template rm one; rm /tmp/turns.py /tmp/hop.py")
