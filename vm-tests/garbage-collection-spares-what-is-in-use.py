# worker: fresh
# timeout: 1500
# What a configuration no longer declares is removed, but not from under a sandbox: then it is kept, through restarts of the
# daemon as well, until the sandbox has gone and the next switch comes. What was made by hand is never touched.

import json

DECLARED = "/srv/declared.json"
STORE = "/var/lib/rundlet"


def there(kind):
    return {it["name"] for it in json.loads(machine.succeed(f"rundlet {kind} ls --json"))}


def files(folder):
    return set(machine.succeed(f"ls {STORE}/{folder}").split())


def switch(images=(), templates=()):
    definition = {
        "image": {f"{name}:latest": {"make": ["import", f"/srv/{name}.tar", name]} for name in images},
        "template": {
            f"{name}:latest": {"because": [], "make": ["build", "--memory", "128", "debian", name]} for name in templates
        },
    }
    machine.succeed(
        f"cat >{DECLARED} <<'END'\n{json.dumps(definition)}\nEND",
        f"module-units switch {DECLARED}",
        timeout=900,
    )


def live():
    for sandbox, before in sandboxes.items():
        now = json.loads(machine.succeed(f"rundlet inspect {sandbox}"))
        assert now["pid"] == before["pid"] and now["phase"] in ("ready", "running"), (before, now)
        assert machine.succeed(f"rundlet exec {sandbox} -- cat /tmp/mark") == "mine\n"


with subtest("a configuration with images and templates, beside some that were made by hand"):
    machine.succeed(
        "module-units install",
        "module-units start",
        # Another image than the one that is there by hand.
        "cp /opt/rundlet/test/debian.tar /srv/used.tar && chmod 644 /srv/used.tar",
        "echo declared >/srv/mark && tar -rf /srv/used.tar -C /srv mark",
        "for name in idle kept; do echo $name >/srv/$name && tar -cf /srv/$name.tar -C /srv $name; done",
        "rundlet template build --memory 128 debian own",
        timeout=600,
    )
    by_hand = there("image")
    files_by_hand = files("images"), files("templates/builds")
    switch(["used", "idle", "kept"], ["busy", "spare"])
    assert there("image") == by_hand | {"used:latest", "idle:latest", "kept:latest"}
    assert there("template") == {"own:latest", "busy:latest", "spare:latest"}

with subtest("sandboxes use some of them"):
    of_image = machine.succeed("rundlet create --memory 128 used", timeout=300).strip()
    of_template = machine.succeed("rundlet create --template busy", timeout=300).strip()
    sandboxes = {}
    for sandbox in (of_image, of_template):
        machine.succeed(f"rundlet exec {sandbox} -- sh -c 'echo mine >/tmp/mark'")
        sandboxes[sandbox] = json.loads(machine.succeed(f"rundlet inspect {sandbox}"))

with subtest("no longer declared: what is in use is kept, the rest is gone"):
    switch(["kept"])
    kept = by_hand | {"used:latest", "kept:latest"}, {"own:latest", "busy:latest"}
    assert (there("image"), there("template")) == kept
    said = machine.succeed("journalctl --no-pager --unit rundlet-store")
    for what in ("image used:latest", "template busy:latest"):
        assert f"{what} is no longer declared and stays for now" in said, said
    live()

with subtest("a daemon that is restarted together with that step does not forget what its sandboxes use"):
    machine.succeed("systemctl restart rundlet.service rundlet-store.service")
    assert (there("image"), there("template")) == kept
    live()

with subtest("when the sandbox has gone, the next switch removes what it used, and nothing else"):
    machine.succeed(f"rundlet rm --force {of_image}")
    del sandboxes[of_image]
    switch(["kept"])
    assert (there("image"), there("template")) == (by_hand | {"kept:latest"}, kept[1])
    live()
    machine.succeed(f"rundlet rm --force {of_template}")
    switch(["kept"])
    assert (there("image"), there("template")) == (by_hand | {"kept:latest"}, {"own:latest"})

with subtest("nothing of it is left on the disk, and what was made by hand serves"):
    images, builds = files_by_hand
    assert len(files("images") - images) == 1 and files("images") >= images, (files("images"), images)
    assert files("templates/builds") == builds
    assert json.loads(machine.succeed(f"cat {STORE}/declared.json"))["image"].keys() == {"kept:latest"}
    last = machine.succeed("rundlet create --template own", timeout=300).strip()
    machine.succeed(f"rundlet rm --force {last}")
