# Two hundred clones of one template have nothing in common that must be random: getrandom, /dev/urandom, UUIDs, machine
# and boot id, hostname, TCP's sequence numbers and timestamps, address layout, canary and AT_RANDOM of new programs.
# worker: fresh
# timeout: 3000
import json

count = 200
ask = 'python3 -I -S -c "$(cat /opt/rundlet/bin/identity)"'
# The template was asked, too: what a kernel chooses once, when it is first wanted, is chosen before there are clones.
machine.succeed(f"rundlet template build --memory 128 debian base -- {ask}")

with subtest("two hundred clones, all distinct in every value"):
    machine.succeed(
        f"rundlet fleet --template base --count {count} --at-once 4 --timeout 900 -- {ask} >/tmp/fleet",
        timeout=2700,
    )
    lines = [json.loads(line) for line in machine.succeed("cat /tmp/fleet").splitlines()]
    ran = [line["command"] for line in lines if "command" in line]
    assert len(ran) == count and all(it["code"] == 0 for it in ran), [it for it in ran if it["code"] != 0][:3]
    pick = "import json, sys; [print(json.loads(l)['command']['stdout'], end='') for l in sys.stdin if 'command' in l]"
    machine.succeed(f'python3 -c "{pick}" </tmp/fleet >/tmp/identities')
    status, shown = machine.execute("identity compare </tmp/identities")
    assert status == 0 and f"{count} lines, 0 shared values" in shown, shown[:2000]

with subtest("each has the name that the node gave it"):
    said = [(it["id"], json.loads(it["stdout"])["hostname"]) for it in ran]
    assert all(one == other for one, other in said), said[:5]

with subtest("twin: the same clone twice is found out"):
    status, shown = machine.execute("(head -n 3 /tmp/identities; head -n 1 /tmp/identities) | identity compare")
    assert status == 1 and "getrandom" in shown and "machine_id" in shown and "tcp.sequences" in shown, (status, shown)
