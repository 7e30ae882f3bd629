# The lines with curl that README.md shows of the API do what it says, as they stand there.
import json
import re
import shlex

readme = machine.succeed("cat /opt/rundlet/test/README.md")
section = readme.split("\n## The daemon and its API\n")[1].split("\n## ")[0]
(block,) = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
commands = block.replace("\\\n", " ").splitlines()


def run(commands):
    """Runs them in one shell, as a reader would; what each printed. An answer that refuses is a failure here."""
    refusing = 'curl() { command curl --no-progress-meter --fail-with-body --max-time 120 "$@"; }'
    script = "\n".join([refusing, *(f"{command}\necho; echo next" for command in commands)])
    printed = machine.execute(f"bash -euo pipefail -c {shlex.quote(script)} 2>&1", timeout=400)
    return printed[0], [text.strip() for text in printed[1].split("\nnext\n")]


machine.succeed("node-api start")

with subtest("all of them work"):
    status, printed = run(commands)
    assert status == 0, printed
    said = dict(zip(commands, printed))

    def answer(*words):
        (found,) = [text for command, text in said.items() if command.startswith("curl ") and all(it in command for it in words)]
        return found

    assert json.loads(answer("/v1/health"))["status"] == "ok", said
    made = json.loads(answer("/v1/sandboxes ", '"source"'))
    assert made["phase"] == "ready" and made["labels"] == {"job": "8"}, made
    listed = json.loads(answer("?label=job=8"))["sandboxes"]
    assert [it["id"] for it in listed] == [made["id"]], listed
    result = json.loads(answer("/exec"))
    assert (result["exit_code"], result["stdout"]) == (0, made["id"] + "\n"), result
    assert answer("-X DELETE") == "", said
    assert "/v1/sandboxes/{id}/exec" in json.loads(answer("/openapi.json"))["paths"], said

with subtest("nothing is left of the sandbox"):
    assert json.loads(machine.succeed("node-api GET /v1/sandboxes"))["sandboxes"] == []

with subtest("twin: a line that has rotted is noticed"):
    for old, new in (("/v1/health", "/v1/healthy"), ('"source"', '"sauce"')):
        (line,) = [command for command in commands if old in command and "id=" not in command]
        status, printed = run([commands[0], line.replace(old, new)])
        assert status != 0 and "/problems/" in printed[-1], (status, printed)

machine.succeed("node-api stop")
