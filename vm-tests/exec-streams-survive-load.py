# Streams of commands are whole under load: several at a time carry megabytes both ways through the daemon, while sandboxes come and go;
# exit codes, signals and the end of input arrive; a client that is killed takes its command with it and nothing else.
# timeout: 900
import json

machine.succeed("rundlet template build --memory 128 debian base", "node-api start")
wish = '{"source":{"template":"base"}}'
boxes = [json.loads(machine.succeed(f"node-api POST /v1/sandboxes '{wish}'"))["id"] for _ in range(2)]
machine.succeed("dd if=/dev/urandom of=/tmp/data bs=1M count=8 status=none")

with subtest("four streams of 8 MiB in and out, and starts beside them"):
    machine.succeed("(setsid node-api burst 6 2 '" + wish + "' >/tmp/burst.out 2>&1 </dev/null &)")
    runs = " ".join(
        f"(rundlet exec -i {boxes[number % 2]} -- cat </tmp/data >/tmp/out.{number}; echo $? >/tmp/code.{number}) &" for number in range(4)
    )
    machine.succeed(f"{runs} wait", timeout=600)
    for number in range(4):
        machine.succeed(f"cmp /tmp/data /tmp/out.{number} && test $(cat /tmp/code.{number}) = 0")
    machine.wait_until_succeeds("test $(grep -c '\"status\": 201' /tmp/burst.out) -eq 6", timeout=240)

with subtest("exit codes, signals, both outputs"):
    assert machine.execute(f"rundlet exec {boxes[0]} -- sh -c 'exit 42'")[0] == 42
    assert machine.execute(f"rundlet exec {boxes[0]} -- sh -c 'kill -USR1 $$'")[0] == 128 + 10
    assert machine.execute(f"rundlet exec {boxes[0]} -- /no/such/program")[0] == 127
    machine.succeed(f"rundlet exec {boxes[0]} -- sh -c 'echo out; echo err >&2' >/tmp/o 2>/tmp/e; test $(cat /tmp/o) = out; test $(cat /tmp/e) = err")

with subtest("a reader that stops holds up its own command only"):
    machine.succeed(
        f"(setsid sh -c 'rundlet exec {boxes[0]} -- sh -c \"cat /dev/zero\" | sleep 20' >/dev/null 2>&1 </dev/null &); sleep 2",
        f"timeout 20 rundlet exec {boxes[0]} -- echo meanwhile",
        f"timeout 20 rundlet exec {boxes[1]} -- echo meanwhile",
    )

with subtest("a client that is killed takes its command with it, and the sandbox stays"):
    machine.succeed(f"(setsid rundlet exec {boxes[1]} -- sleep 4321 >/dev/null 2>&1 </dev/null &)")
    machine.wait_until_succeeds(f"rundlet exec {boxes[1]} -- sh -c 'grep -l 4321 /proc/[0-9]*/cmdline | grep -v -e /self/ -e /$$/ | grep .'", timeout=60)
    machine.succeed("pkill -KILL -f 'rundlet exec .* sleep 4321'")
    machine.wait_until_fails(f"rundlet exec {boxes[1]} -- sh -c 'grep -lx sleep /proc/[0-9]*/comm'", timeout=60)

with subtest("auto_remove: the sandbox of `rundlet run` goes with its client"):
    before = {it["id"] for it in json.loads(machine.succeed("node-api GET /v1/sandboxes"))["sandboxes"]}
    assert machine.succeed("rundlet run --daemon always --template base -- hostname").strip() not in before
    machine.succeed("(setsid rundlet run --daemon always --template base -- sleep 999 >/dev/null 2>&1 </dev/null &)")
    machine.wait_until_succeeds("node-api GET '/v1/sandboxes?phase=running' | grep -q running", timeout=60)
    machine.succeed("pkill -KILL -f 'rundlet run .* sleep 999'")

    def alive():
        listed = json.loads(machine.succeed("node-api GET /v1/sandboxes"))["sandboxes"]
        return {it["id"] for it in listed if it["phase"] not in ("stopped", "failed")} - before

    for _ in range(60):
        if not alive():
            break
        machine.sleep(1)
    assert not alive()

for one in json.loads(machine.succeed("node-api GET /v1/sandboxes"))["sandboxes"]:
    machine.succeed(f"node-api DELETE '/v1/sandboxes/{one['id']}?force=true'")
machine.succeed("node-api stop; pkill vhost-blk-ro || true; rundlet template rm base; rm -f /tmp/out.* /tmp/data")
