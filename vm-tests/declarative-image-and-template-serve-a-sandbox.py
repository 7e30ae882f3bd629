# worker: fresh
# timeout: 1500
# What a configuration declares is there when the switch to it is over, and serves sandboxes. The next switch makes what is
# another, and leaves what is the same. One that cannot be made is told, and keeps nobody else from being there.

import json

GOLDEN = "/opt/rundlet/test/golden"
DECLARED = "/srv/declared.json"


def there(kind):
    """By name, all about each."""
    return {it["name"]: it for it in json.loads(machine.succeed(f"rundlet {kind} ls --json"))}


def declare(definition):
    machine.succeed(f"cat >{DECLARED} <<'END'\n{json.dumps(definition)}\nEND")


def switch():
    machine.succeed(f"module-units switch {DECLARED}", timeout=900)


def create(words):
    return machine.succeed(f"rundlet create {words}", timeout=300).strip()


with subtest("nothing of it is there before"):
    machine.succeed("module-units install", "module-units start")
    by_hand = there("image")
    assert there("template") == {}
    machine.fail("rundlet create tools")

with subtest("the switch makes all that the reference configuration declares, and touches nothing else"):
    machine.succeed(
        # Where the reference configuration has them; only Nix would make the first of them.
        "cp /opt/rundlet/test/debian.tar /srv/tools.tar && chmod 644 /srv/tools.tar",
        "echo tools >/srv/mark && tar -rf /srv/tools.tar -C /srv mark",
        "mkdir -p /srv/plain/dev /srv/plain/proc /srv/plain/run /srv/plain/sys /srv/plain/tmp",
        "tar -cf /srv/plain.tar.zst -C /srv/plain .",
    )
    text = machine.succeed(f"sed 's,/nix/store/tools.tar,/srv/tools.tar,g' {GOLDEN}/rundlet-declared.json")
    definition = json.loads(text)
    declare(definition)
    switch()
    images, templates = there("image"), there("template")
    assert images.keys() >= {"tools:latest", "team/plain:v1"}, images
    assert templates.keys() == {"plain:latest", "server:latest"}, templates
    for name in images.keys() & by_hand.keys():
        assert images[name] == by_hand[name], (images, by_hand)

with subtest("the image serves a sandbox"):
    from_image = create("--memory 128 tools")
    assert machine.succeed(f"rundlet exec {from_image} -- cat /mark") == "tools\n"

with subtest("the template serves one, in which its warm-up lives on"):
    clone = create("--template server")
    running = machine.succeed(f"rundlet exec {clone} -- sh -c \"cat /proc/[0-9]*/cmdline | tr '\\\\0' ' '\"")
    assert "sleep 1000000" in running, running
    assert machine.succeed(f"rundlet exec {clone} -- nproc") == "2\n"
    assert machine.succeed(f"rundlet exec {clone} -- cat /mark") == "tools\n"

with subtest("one without a warm-up, of an image without a program, does so as well"):
    machine.succeed(f"rundlet rm --force {create('--template plain')}")

with subtest("the same again makes nothing anew"):
    switch()
    assert there("image") == images
    assert {name: it["id"] for name, it in there("template").items()} == {
        name: it["id"] for name, it in templates.items()
    }

with subtest("another definition of one template: that one is made again, and its clones live on"):
    words = definition["template"]["server:latest"]["make"]
    words[words.index("--memory") + 1] = "160"
    declare(definition)
    switch()
    now = there("template")
    assert now["plain:latest"]["id"] == templates["plain:latest"]["id"]
    assert now["server:latest"]["id"] != templates["server:latest"]["id"]
    bigger = create("--template server")
    sizes = [json.loads(machine.succeed(f"rundlet inspect {it}"))["memory_mib"] for it in (clone, bigger)]
    assert sizes == [128, 160], sizes
    assert machine.succeed(f"rundlet exec {clone} -- cat /mark") == "tools\n"

with subtest("what cannot be made is told; the rest is there, and the next switch makes it good"):
    definition["image"]["more:latest"] = {"make": ["import", "/srv/more.tar", "more"]}
    definition["image"]["zero:latest"] = {"make": ["import", "/srv/plain", "zero"]}
    declare(definition)
    machine.fail(f"module-units switch {DECLARED}", timeout=900)
    machine.succeed("journalctl --no-pager --unit rundlet-store | grep 'image more:latest could not be made'")
    names = there("image").keys()
    assert "zero:latest" in names and "more:latest" not in names, names
    machine.succeed("cp /srv/plain.tar.zst /srv/more.tar")
    switch()
    assert "more:latest" in there("image")

machine.succeed(f"rundlet rm --force {from_image} {clone} {bigger}")
