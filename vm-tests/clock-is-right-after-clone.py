# A clone's time of day is the host's, however old the template is; its monotonic clock goes on from where the template
# stood and never steps back.
# timeout: 900
import json

# Samples both clocks without a pause; what lies between two samples is the clone's sleep as a template, or a step.
program = """
import json, os, threading, time
found = {'back': 0, 'largest': 0, 'samples': 0}
def sample():
    last = time.monotonic_ns()
    while True:
        now = time.monotonic_ns()
        found['back'] += now < last
        found['largest'] = max(found['largest'], now - last)
        found['samples'] += 1
        last = now
        time.sleep(0.002)
threading.Thread(target=sample, daemon=True).start()
early = {'realtime': time.time_ns(), 'monotonic': time.monotonic_ns(), 'boottime': time.clock_gettime_ns(time.CLOCK_BOOTTIME)}
os.mkfifo('/question'); os.mkfifo('/answer')
print('ready', flush=True)
while True:
    open('/question').read()
    late = {'realtime': time.time_ns(), 'monotonic': time.monotonic_ns(), 'boottime': time.clock_gettime_ns(time.CLOCK_BOOTTIME)}
    with open('/answer', 'w') as answer:
        json.dump({'early': early, 'late': late, **found}, answer)
"""
second = 10**9
machine.succeed(f"cat >/tmp/clock.py <<'END'\n{program}\nEND")
machine.succeed(
    "rundlet template build --memory 192 --ready-line ready debian clock -- python3 -c \"$(cat /tmp/clock.py)\""
)
age = 30
machine.sleep(age)


def host():
    return int(machine.succeed("date +%s%N"))


def ask():
    """What the warm program says, between two looks at the host's clock."""
    before = host()
    shown = machine.succeed("rundlet run --template clock -- sh -c 'sleep 1; echo >/question; cat /answer'")
    return before, json.loads(shown), host()


before, said, after = ask()
early, late = said["early"], said["late"]

with subtest("the time of day is the host's"):
    # The guest answered between the two looks.
    assert before - second < late["realtime"] < after + second, (before, late, after)

with subtest("twin: without the renewal it would be the template's, which is long ago"):
    assert late["realtime"] - early["realtime"] > age * second, (early, late)

with subtest("the monotonic clocks do not know of the template's sleep, and never step back"):
    for clock in ("monotonic", "boottime"):
        passed = late[clock] - early[clock]
        assert 0 < passed < (age - 5) * second, (clock, passed)
    assert said["back"] == 0 and said["samples"] > 10, said
    assert said["largest"] < (age - 10) * second, said

with subtest("a clone of the same template, later: again the host's time, again from the template's monotonic time"):
    before, again, after = ask()
    assert before - second < again["late"]["realtime"] < after + second, (before, again, after)
    assert again["early"] == early and again["late"]["monotonic"] > early["monotonic"], again
    assert again["late"]["monotonic"] - early["monotonic"] < (age - 5) * second, again

with subtest("time goes at the host's pace"):
    shown = machine.succeed(
        "rundlet run --template clock -- python3 -c '"
        "import time; a = time.time_ns(), time.monotonic_ns(); time.sleep(5); b = time.time_ns(), time.monotonic_ns(); "
        "print(b[0] - a[0], b[1] - a[1])'"
    )
    for passed in map(int, shown.split()):
        assert 4.9 * second < passed < 8 * second, shown

with subtest("files that a clone writes have the host's date"):
    now = host() // second
    written = int(machine.succeed("rundlet run --template clock -- sh -c 'touch /x; stat -c %Y /x'"))
    assert now - 1 <= written <= host() // second + 1, (now, written)

machine.succeed("rundlet template rm clock; rm /tmp/clock.py")
