#!/usr/bin/env python3
"""A client that somebody else's generator makes of our OpenAPI document creates a sandbox, runs a command in it, and
removes it.

The daemon is the double of `examples/served`: no KVM, commands run on this machine. Needs pip and its index (or a cache
of it); where they cannot be reached the test is skipped, by name. The generator leaves out what it has no types for,
which is the stream of events and the text of figures; if it leaves out anything else, the test fails.

    make client                         # or node/tests/client/run.py: builds what it needs
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import venv

# Another generator is another test: pinned.
GENERATOR = "openapi-python-client==0.26.2"

NAME = "generated-client-uses-the-api"
ROOT = pathlib.Path(__file__).resolve().parents[3]

# Run by the interpreter that has the generated client. httpx speaks to unix sockets by its transport.
PROGRAM = '''
import sys
import httpx
from rundlet_client import Client
from rundlet_client.api.commands import exec_ as exec_operation
from rundlet_client.api.sandboxes import create_sandbox, inspect_sandbox, list_sandboxes, remove_sandbox
from rundlet_client.models import CreateSandbox, Detail, Exec, ExecResult, Limits, Phase

client = Client(base_url="http://rundlet", raise_on_unexpected_status=True)
client.set_httpx_client(
    httpx.Client(base_url="http://rundlet", transport=httpx.HTTPTransport(uds=sys.argv[1]))
)
wish = CreateSandbox.from_dict({"source": {"image": "img"}, "labels": {"by": "generated"}})
made = create_sandbox.sync(client=client, body=wish, idempotency_key="one")
assert isinstance(made, Detail), made
assert made.phase == Phase.READY, made
again = create_sandbox.sync(client=client, body=wish, idempotency_key="one")
assert again.id == made.id, again
listed = list_sandboxes.sync(client=client, label=["by=generated"], phase=[Phase.READY])
assert [it.id for it in listed.sandboxes] == [made.id], listed
result = exec_operation.sync(made.id, client=client, body=Exec(argv=["sh", "-c", "echo hello; exit 3"]))
assert isinstance(result, ExecResult), result
assert (result.exit_code, result.stdout) == (3, "hello\\n"), result
gone = remove_sandbox.sync_detailed(made.id, client=client, force=True)
assert gone.status_code == 204, gone
assert list_sandboxes.sync(client=client).sandboxes == []
'''


def skip(why):
    print(f"SKIPPED {NAME}: {why}")
    sys.exit(0)


def build():
    for args in (["-p", "rundlet", "--example", "served"], ["-p", "rundlet-init"]):
        subprocess.run(["cargo", "build", "--quiet", "--locked", *args], cwd=ROOT, check=True)
    metadata = ["cargo", "metadata", "--format-version", "1", "--no-deps"]
    metadata = subprocess.run(metadata, cwd=ROOT, check=True, capture_output=True)
    debug = pathlib.Path(json.loads(metadata.stdout)["target_directory"]) / "debug"
    return debug / "examples" / "served", debug / "rundlet-init"


def generator():
    """An environment of its own with the generator."""
    cache = os.environ.get("RUNDLET_CACHE") or pathlib.Path.home() / ".cache" / "rundlet"
    place = pathlib.Path(cache) / f"venv-{GENERATOR.replace('==', '-')}"
    if not (place / "complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        try:
            venv.create(place, with_pip=True)
        except (OSError, subprocess.CalledProcessError) as error:
            skip(f"no environment for Python: {error}")
        pip = [place / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "--timeout", "20", "--retries", "2"]
        installed = subprocess.run([*pip, GENERATOR], capture_output=True, text=True)
        if installed.returncode != 0:
            last = installed.stderr.strip().splitlines()[-1:]
            skip(f"pip cannot install {GENERATOR}: {' '.join(last)}")
        (place / "complete").touch()
    return place / "bin"


def ask(path, request):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(f"GET {request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer.split(b"\r\n\r\n", 1)[1]


def wait_for(path):
    for _ in range(1000):
        try:
            return ask(path, "/v1/health")
        except OSError:
            time.sleep(0.01)
    raise SystemExit(f"{NAME}: the daemon does not answer")


def check(directory, served):
    document = directory / "openapi.json"
    document.write_bytes(ask(served, "/openapi.json"))
    config = directory / "config.json"
    config.write_text('{"project_name_override": "rundlet-client", "package_name_override": "rundlet_client"}')
    programs = generator()
    command = [programs / "openapi-python-client", "generate", "--meta", "none"]
    command += ["--path", document, "--config", config, "--output-path", directory / "rundlet_client"]
    made = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    said = made.stdout + made.stderr
    if made.returncode != 0:
        raise SystemExit(f"{NAME}: the generator refuses the document\n{said}")
    left_out = {line.split()[3] for line in said.splitlines() if line.startswith("WARNING parsing ")}
    if not left_out <= {"/v1/events", "/metrics"}:
        raise SystemExit(f"{NAME}: the generator leaves out {sorted(left_out)}\n{said}")
    environment = dict(os.environ, PYTHONPATH=str(directory))
    program = [programs / "python", "-c", PROGRAM, str(served)]
    subprocess.run(program, check=True, cwd=directory, env=environment)


def main():
    daemon, agent = build()
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        served = directory / "api.sock"
        command = [daemon, "--socket", served, "--directory", directory / "node"]
        environment = dict(os.environ, RUNDLET_DOUBLE_AGENT=str(agent))
        process = subprocess.Popen(command, env=environment)
        try:
            wait_for(served)
            check(directory, served)
        finally:
            process.kill()
            process.wait()
    print(f"ok {NAME}")


if __name__ == "__main__":
    main()
