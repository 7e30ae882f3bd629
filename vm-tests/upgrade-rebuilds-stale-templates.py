# worker: fresh
# timeout: 1500
# After another rundlet was installed, with another monitor and another guest kernel, or when the host itself is another, declared
# templates are built again and serve sandboxes, with nobody asking for it. Sandboxes of the old ones live on, and when they have
# gone, so have the old ones.

import json

DECLARED = "/srv/declared.json"
NEXT = "/srv/next"
BUILDS = "/var/lib/rundlet/templates/builds"


def declare(package):
    """The module names the package among what makes a template another one."""
    warm_up = ["sh", "-c", "cat /proc/sys/kernel/random/uuid >/made"]
    make = ["build", "--memory", "128", "debian", "declared", "--", *warm_up]
    definition = {"image": {}, "template": {"declared:latest": {"because": [package, None], "make": make}}}
    machine.succeed(f"cat >{DECLARED} <<'END'\n{json.dumps(definition)}\nEND")


def template():
    return json.loads(machine.succeed("rundlet template inspect declared"))


def create():
    """A sandbox of it, and which build it is of, by what its warm-up left."""
    sandbox = machine.succeed("rundlet create --template declared", timeout=300).strip()
    return sandbox, machine.succeed(f"rundlet exec {sandbox} -- cat /made")


def program(path):
    return machine.succeed(f"sha256sum <{path}")


def monitor_of(sandbox):
    """By what it is: it has gone where its path is another."""
    pid = json.loads(machine.succeed(f"rundlet inspect {sandbox}"))["pid"]
    return pid, program(f"/proc/{pid}/exe")


with subtest("a configuration with a template"):
    machine.succeed("module-units install", "module-units start")
    declare("/first")
    machine.succeed(f"module-units switch {DECLARED}", timeout=900)
    first = template()
    old, made = create()
    old_monitor = monitor_of(old)

with subtest("another rundlet: no clone is made of what does not fit it"):
    machine.succeed(
        "cd /srv && cp $(readlink -f $(command -v rundlet-vmm)) vmm && chmod 755 vmm && echo >>vmm",
        "cd /srv && cp /opt/rundlet/share/rundlet/vmlinux . && chmod 644 vmlinux && echo >>vmlinux",
        f"module-units rundlet {NEXT} /srv/vmm /srv/vmlinux /opt/rundlet/share/rundlet/initrd.cpio",
        "rundlet template check declared",
    )
    said = machine.fail(f"{NEXT}/rundlet template check declared 2>&1")
    assert "another kernel" in said, said

with subtest("the switch to it builds the template again"):
    declare("/second")
    machine.succeed(f"module-units switch {DECLARED} {NEXT}/rundlet", timeout=900)
    second = template()
    assert second["id"] != first["id"]
    assert second["vmm"] != first["vmm"] and second["binding"]["kernel"] != first["binding"]["kernel"], (first, second)

with subtest("it serves sandboxes, by the new monitor, beside those of the old one"):
    new, made_again = create()
    assert made_again != made
    assert monitor_of(new)[1] == program(f"{NEXT}/libexec/rundlet-vmm") != old_monitor[1]
    assert monitor_of(old) == old_monitor
    assert machine.succeed(f"rundlet exec {old} -- cat /made") == made
    machine.succeed(f"rundlet rm --force {new}")

with subtest("the host is another, and the configuration is the same: what a boot runs builds it again"):
    # As a template sees another processor: the one thing that it is bound to and that can be changed here.
    machine.succeed(
        f"cp {NEXT}/libexec/rundlet-vmm /srv/vmm && echo >>/srv/vmm && mv /srv/vmm {NEXT}/libexec/rundlet-vmm",
        "systemctl restart rundlet.service",
    )
    said = machine.fail(f"{NEXT}/rundlet template check declared 2>&1")
    assert "another build" in said, said
    machine.succeed("systemctl restart rundlet-store.service", timeout=900)
    third = template()
    assert third["id"] != second["id"]
    new, made_last = create()
    assert made_last not in (made, made_again)

with subtest("a template that fits is left alone"):
    machine.succeed("systemctl restart rundlet-store.service", timeout=900)
    assert template() == {**third, "used_by": template()["used_by"]}

with subtest("the old one goes with its last sandbox"):
    assert machine.succeed(f"rundlet exec {old} -- cat /made") == made
    assert first["id"] in machine.succeed(f"ls {BUILDS}").split()
    machine.succeed(f"rundlet rm --force {old} {new}")
    machine.wait_until_succeeds(f"test $(ls {BUILDS}) = {third['id']}", timeout=300)
