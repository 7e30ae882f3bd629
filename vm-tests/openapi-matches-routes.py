# The OpenAPI document that a running daemon serves names exactly the routes that it answers.
import json

machine.succeed("node-api start")
document = json.loads(machine.succeed("node-api GET /openapi.json"))

with subtest("it is a document of version 3, with a schema for every answer"):
    assert document["openapi"].startswith("3."), document["openapi"]
    assert len(document["paths"]) >= 12, list(document["paths"])

with subtest("every path and method of it is answered by something else than `no such route` or `no such method`"):
    for path, methods in document["paths"].items():
        where = path.replace("{id}", "000000000000").replace("{name}", "nothing")
        for method in methods:
            if path == "/v1/events" or method not in ("get", "post", "put", "delete"):
                continue
            status, text = machine.execute(f"timeout 20 node-api {method.upper()} '{where}' '{{}}'")
            assert "/problems/no-route" not in text and "/problems/no-method" not in text, (method, path, text)
            assert status in (0, 22), (method, path, status, text)

with subtest("twin: others are not"):
    for method, path in (("GET", "/v1/nothing"), ("PUT", "/v1/sandboxes"), ("GET", "/v2/sandboxes")):
        status, text = machine.execute(f"node-api {method} {path}")
        assert status == 22 and "/problems/no-" in text, (method, path, text)

with subtest("bad requests name their field"):
    for body, field in (
        ('{"source":{"image":"debian"},"memory_mib":1}', "memory_mib"),
        ('{"source":{"image":"debian"},"vcpus":99}', "vcpus"),
        ('{"source":{"image":"debian"},"colour":"red"}', "colour"),
        ('{"source":{"image":"no-such-image"}}', "no-such-image"),
        ('{"memory_mib":128}', "source"),
        ("{", ""),
    ):
        status, text = machine.execute(f"node-api POST /v1/sandboxes '{body}'")
        problem = json.loads(text)
        assert status == 22 and 400 <= problem["status"] < 500 and field in text, (body, text)

machine.succeed("node-api stop")
