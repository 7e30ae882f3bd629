# A clone's file system is the template's in the middle of its work: mounted, with data that was never synced, files that
# are open, and files that are open and have no name any more.
# timeout: 900

program = """
import hashlib, os
big = open('/big', 'w+b')
for number in range(48):
    big.write(hashlib.sha256(b'%d' % number).digest() * 32768)  # 1 MiB each, never synced
nameless = open('/nameless', 'w+b')
nameless.write(b'n' * 100_000)
nameless.flush()
os.unlink('/nameless')
log = open('/log', 'a')
log.write('from the template\\n')
log.flush()
os.mkfifo('/question')
os.mkfifo('/answer')
print('ready', flush=True)
while True:
    with open('/question') as asked:
        word = asked.read().strip()
    log.write(f'{word}\\n')
    log.flush()
    nameless.seek(0)
    big.seek(0)
    digest = hashlib.sha256(big.read()).hexdigest()
    with open('/answer', 'w') as answer:
        answer.write(f'{os.getpid()} {digest} {len(nameless.read())} {os.fstat(nameless.fileno()).st_nlink}')
"""
expected = (
    "import hashlib; h = hashlib.sha256(); "
    "[h.update(hashlib.sha256(b'%d' % n).digest() * 32768) for n in range(48)]; print(h.hexdigest())"
)
digest = machine.succeed(f'python3 -c "{expected}"').strip()
machine.succeed(f"cat >/tmp/server.py <<'END'\n{program}\nEND")
machine.succeed(
    "rundlet template build --memory 192 --ready-line ready debian open -- python3 -c \"$(cat /tmp/server.py)\""
)


def ask(word, then):
    return machine.succeed(
        f"rundlet run --template open -- sh -c 'echo {word} >/question; cat /answer; echo; cat /log; {then}'"
    ).splitlines()


with subtest("an open file, a nameless one and one whose pages were dirty are there; writing through them goes on"):
    answer, *log = ask("first", "sha256sum /big; test ! -e /nameless")
    pid, found, length, links = answer.split()
    assert found == digest and length == "100000" and links == "0", answer
    assert log[:2] == ["from the template", "first"] and log[2].split()[0] == digest, log

with subtest("every clone starts from the same state: what the first one wrote is not there"):
    answer, *log = ask("second", "true")
    assert answer.split() == [pid, digest, "100000", "0"] and log == ["from the template", "second"], (answer, log)

with subtest("the disk takes more, and from its beginning to its end: 200 MiB, dropped from the cache and read again"):
    machine.succeed(
        "rundlet run --template open -- sh -c '"
        "for n in 1 2 3 4; do dd if=/dev/urandom of=/part$n bs=1M count=50 status=none; done; "
        "sha256sum /part* /big >/sums; sync; echo 3 >/proc/sys/vm/drop_caches; sha256sum --status -c /sums'",
        timeout=300,
    )

with subtest("the file system has no errors, by its own count"):
    shown = machine.succeed("rundlet run --template open -- sh -c 'cat /sys/fs/ext4/*/errors_count; mount | grep -c ext4 || true'")
    assert shown.splitlines()[0] == "0", shown

with subtest("twin: a cold boot of the image has none of it"):
    machine.succeed("rundlet run debian -- sh -c 'test ! -e /big && test ! -e /log'")

machine.succeed("rundlet template rm open; rm /tmp/server.py")
