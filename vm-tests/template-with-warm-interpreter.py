# A Python interpreter that was warmed up and waits in the template answers a clone's first call at once: it is the same
# process, and it does not import its modules again.
import json

# Counts the modules that Python looks for.
spy = """
import os, sys
class Spy:
    searched = 0
    def find_spec(self, *_):
        Spy.searched += 1
sys.meta_path.insert(0, Spy())
import asyncio, decimal, email.mime.text, http.client, json, sqlite3, ssl, unittest, xml.dom.minidom
"""
handler = f"""{spy}
warm_up, Spy.searched = Spy.searched, 0
with open('/imports', 'a') as imports:
    imports.write(str(os.getpid()))
os.mkfifo('/call'); os.mkfifo('/answer')
calls = 0
print('handler is warm', flush=True)
while True:
    with open('/call') as call:
        event = json.load(call)
    calls += 1
    said = dict(sum=sum(event['numbers']), pid=os.getpid(), warm_up=warm_up, searched=Spy.searched, calls=calls)
    with open('/answer', 'w') as answer:
        json.dump(said, answer)
"""
machine.succeed(f"cat >/tmp/handler.py <<'END'\n{handler}\nEND")
machine.succeed(
    "rundlet template build --memory 192 --ready-line 'handler is warm' debian warm -- python3 -c \"$(cat /tmp/handler.py)\""
)
call = "echo \"{\\\"numbers\\\": [1, 2, 39]}\" >/call; cat /answer"
# Field 22 of proc_pid_stat(5): when the handler was started.
started = "cut -d\" \" -f22 /proc/$(cat /imports)/stat"


def clone(script):
    return machine.succeed(f"rundlet run --template warm -- sh -c '{script}'").splitlines()


with subtest("the first call is answered by the process of the template, which imports nothing for that"):
    before, answer, after, imports = clone(f"{started}; {call}; echo; {started}; cat /imports")
    answer = json.loads(answer)
    assert answer["sum"] == 42 and answer["calls"] == 1 and str(answer["pid"]) == imports, (answer, imports)
    assert answer["warm_up"] > 100 and answer["searched"] == 0, answer
    assert before == after, (before, after)

with subtest("twin: a cold interpreter has all of it to do"):
    machine.succeed(f"cat >/tmp/cold.py <<'END'\n{spy}print(Spy.searched)\nEND")
    cold = machine.succeed('rundlet run --memory 192 debian -- python3 -c "$(cat /tmp/cold.py)"')
    assert int(cold) > 100, cold

with subtest("each clone has a handler of its own: the count of calls begins anew"):
    assert json.loads(clone(call)[0])["calls"] == 1
    first, second = (json.loads(line) for line in clone(f"{call}; echo; {call}; echo"))
    assert (first["calls"], second["calls"]) == (1, 2), (first, second)

with subtest("its output has no reader any more, which does it no harm"):
    noisy = "for n in 1 2 3; do echo noise >/proc/$(cat /imports)/fd/1; done"
    assert json.loads(clone(f"{noisy}; {call}")[0])["sum"] == 42

machine.succeed("rundlet template rm warm; rm /tmp/handler.py /tmp/cold.py")
