# `rundlet run` boots a microVM of our own kernel from an image and runs a program of that image in it.

with subtest("the program runs on the guest's kernel, not on this machine's"):
    guest = machine.succeed("rundlet run debian -- uname -r").strip()
    assert guest.endswith("-rundlet"), guest
    assert guest != machine.succeed("uname -r").strip()

with subtest("arguments, environment, working directory and user arrive as given"):
    shown = machine.succeed(
        "rundlet run --env 'GREETING=hello world' --workdir /usr --user 1000:1000 debian -- "
        "sh -c 'printf \"%s|\" \"$GREETING\" \"$PWD\" \"$(id -u):$(id -g)\" \"$@\"' sh 'two words' '' '*'"
    )
    assert shown == "hello world|/usr|1000:1000|two words||*|", shown

with subtest("a real program: Python, its own PID namespace, 64 MiB through the writable layer"):
    program = (
        "import hashlib, os; data = os.urandom(1 << 20) * 64; open('/big', 'wb').write(data); "
        "again = open('/big', 'rb').read(); assert hashlib.sha256(again).digest() == hashlib.sha256(data).digest(); "
        "print(open('/proc/1/comm').read().strip(), os.getpid() < 1000, len(again))"
    )
    shown = machine.succeed(f'rundlet run debian -- python3 -c "{program}"').split()
    assert shown[1:] == ["True", str(64 << 20)], shown
    assert shown[0] != machine.succeed("cat /proc/1/comm").strip(), shown

with subtest("memory and processors are what was asked for"):
    total, processors = machine.succeed(
        "rundlet run --memory 192 --vcpus 2 debian -- sh -c 'grep MemTotal /proc/meminfo; nproc'"
    ).splitlines()
    assert 150 * 1024 < int(total.split()[1]) < 192 * 1024, total
    assert processors == "2", processors

with subtest("twin: an image that does not exist is refused, and the message names it"):
    status, shown = machine.execute("rundlet run no-such-image -- true 2>&1")
    assert status == 125 and "no-such-image" in shown, (status, shown)
