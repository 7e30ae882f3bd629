# A block backend that dies takes the sandboxes of its image or template with it, each with the reason, and nobody else's;
# the next sandbox gets a new backend.
import json

machine.succeed("rundlet template build --memory 128 debian one", "rundlet template build --memory 128 debian two", "node-api start")


def create(template):
    wish = json.dumps({"source": {"template": template}})
    return json.loads(machine.succeed(f"node-api POST /v1/sandboxes '{wish}'"))["id"]


def inspect(one):
    return json.loads(machine.succeed(f"node-api GET /v1/sandboxes/{one}"))


victims = [create("one"), create("one")]
(backend,) = machine.succeed("pgrep -x vhost-blk-ro").split()
bystander = create("two")

with subtest("SIGKILL for the backend of the first template"):
    machine.succeed(f"kill -KILL {backend}")
    for one in victims:
        machine.wait_until_succeeds(f"node-api GET /v1/sandboxes/{one} | grep -q '\"phase\":\"failed\"'", timeout=60)
        assert "backend" in inspect(one)["reason"], inspect(one)

with subtest("the others did not notice: their disks work"):
    assert inspect(bystander)["phase"] in ("ready", "running")
    machine.succeed(f"rundlet exec {bystander} -- sh -c 'dd if=/dev/urandom of=/root/x bs=1M count=4 status=none && sync && md5sum /usr/bin/* >/dev/null'")

with subtest("the next one of that template works, and has a backend of its own"):
    again = create("one")
    machine.succeed(f"rundlet exec {again} -- sh -c 'echo x >/root/x && sync'")
    assert backend not in machine.succeed("pgrep -x vhost-blk-ro").split()

with subtest("slots of the failed ones came back"):
    machine.wait_until_succeeds("test $(grep -l 'populated 1' /sys/fs/cgroup/rundlet/slot-*/cgroup.events | wc -l) -eq 2", timeout=60)

for one in [*victims, bystander, again]:
    machine.succeed(f"node-api DELETE '/v1/sandboxes/{one}?force=true'")
machine.succeed("node-api stop; pkill vhost-blk-ro || true; rundlet template rm one; rundlet template rm two")
