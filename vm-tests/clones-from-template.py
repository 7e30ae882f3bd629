# A template is built once; each run of it is a clone that goes on where the template stood: it boots nothing, and its
# program runs as in any other sandbox.
import json

machine.succeed("rundlet run debian -- true")  # makes what stays: the store's folders, the scratch template

with subtest("twin: a template that is not there is refused, and the message says what makes it"):
    status, shown = machine.execute("rundlet run --template base -- true 2>&1")
    assert status == 125 and "no template base" in shown and "template build" in shown, (status, shown)

with subtest("build: image, warm-up, capture"):
    machine.succeed("rundlet template build --memory 128 debian base -- sh -c 'date >/warm; cut -d\" \" -f1 /proc/uptime >/up'")
    shown = json.loads(machine.succeed("rundlet template inspect base"))
    assert shown["recipe"]["image"] == "debian:latest" and shown["recipe"]["memory_mib"] == 128, shown
    assert shown["recipe"]["warm_up"]["argv"][0] == "sh", shown
    assert shown["allocated_bytes"] < shown["bytes"] / 4, shown
    # Its first clone, made for that, has told what the others will touch first.
    assert {"touched", "first-command"} <= {it["name"] for it in shown["files"]}, shown
    assert "base:latest" in machine.succeed("rundlet template ls")

with subtest("a clone's program runs: arguments, streams, exit code, user"):
    status, shown = machine.execute(
        "echo typed | rundlet run -i --template base --env A=b --user 1000:1000 -- "
        "sh -c 'cat; printf \"%s|\" \"$A\" \"$(id -u)\" \"$@\"; exit 7' sh 'two words' ''"
    )
    assert (status, shown) == (7, "typed\nb|1000|two words||"), (status, shown)

with subtest("it goes on where the template stood: what the warm-up wrote is there, and the uptime is the template's"):
    warm, up, now = machine.succeed("rundlet run --template base -- sh -c 'cat /warm /up; cut -d\" \" -f1 /proc/uptime'").splitlines()
    assert warm and 0 < float(up) <= float(now), (warm, up, now)
    machine.sleep(10)
    again = machine.succeed("rundlet run --template base -- cut -d' ' -f1 /proc/uptime")
    assert float(again) < float(up) + 10, (up, again)

with subtest("the timeline of a clone has no boot in it; twin: a cold start's has"):
    shown = machine.succeed("rundlet run --timeline debian -- true 2>&1")
    timeline = json.loads(shown.splitlines()[-1])["timeline"]
    assert "kernel" in timeline["vmm_us"] and timeline["guest_us"]["init"] > 0, timeline
    shown = machine.succeed("rundlet run --template base --timeline -- true 2>&1")
    timeline = json.loads(shown.splitlines()[-1])["timeline"]
    assert "template" in timeline["vmm_us"] and "kernel" not in timeline["vmm_us"], timeline
    assert timeline["node_us"]["running"] < timeline["node_us"]["ready"] < timeline["node_us"]["exec_started"], timeline
    assert timeline["guest_us"]["renewed"] > 0, timeline

with subtest("what the template decides is not decided again"):
    for option in ("--memory 256", "--vcpus 2", "--scratch-size 64"):
        status, shown = machine.execute(f"rundlet run --template base {option} -- true 2>&1")
        assert status == 125 and "decided by the template" in shown, (status, shown)

with subtest("a template keeps its image, and a clone its template"):
    status, shown = machine.execute("rundlet image rm debian 2>&1")
    assert status == 1 and "base:latest" in shown, (status, shown)
    machine.succeed(
        "(setsid rundlet run --template base -- sh -c 'echo up; exec sleep 300' >/tmp/run.out 2>&1) >/dev/null 2>&1 &"
    )
    machine.wait_until_succeeds("grep up /tmp/run.out", timeout=120)
    status, shown = machine.execute("rundlet template rm base 2>&1")
    assert status == 1 and "in use by process" in shown, (status, shown)
    machine.succeed("pkill -KILL -x rundlet")
    machine.wait_until_fails("pgrep -x 'rundlet-vmm|vhost-blk-ro|rundlet-janitor'", timeout=60)

with subtest("a warm-up that fails leaves no template"):
    status, shown = machine.execute("rundlet template build debian bad -- sh -c 'echo so bad; exit 3' 2>&1")
    assert status == 1 and "exit code 3" in shown and "so bad" in shown, (status, shown)
    machine.fail("rundlet template inspect bad")
    machine.succeed("test -z \"$(ls /var/lib/rundlet/tmp)\"")

with subtest("removed, nothing of it is left"):
    machine.succeed("rundlet template rm base")
    machine.fail("rundlet run --template base -- true")
    machine.succeed("test -z \"$(ls /var/lib/rundlet/templates/builds)\"")
