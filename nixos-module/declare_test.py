import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

# A `rundlet` whose store is a file: names, those that are in use, those that do not fit. Each change is written to a log.
DOUBLE = """#!{python} -IS
import json, sys
store = {store!r}
kind, verb, *words = sys.argv[1:]
content = json.load(open(store))
if verb == "ls":
    print(json.dumps([{{"name": name}} for name in content[kind]]))
    sys.exit()
if verb == "check":
    sys.exit(words[0] in content["unfit"])
content["log"].append(" ".join([kind, verb, *words]))
status = 0
if verb == "rm" and words[0] in content["used"] or words[0] == "bad":
    status = 1
elif verb == "rm":
    content[kind].remove(words[0])
else:
    content[kind] = sorted({{*content[kind], words[-1] + ":latest"}})
json.dump(content, open(store, "w"))
sys.exit(status)
"""


class Declare(unittest.TestCase):
    def setUp(self):
        self.work = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.store = self.work / "store.json"
        self.keep(image=["by-hand:latest"], template=[], used=[], unfit=[], log=[])
        self.program = self.work / "rundlet"
        self.program.write_text(DOUBLE.format(python=sys.executable, store=str(self.store)))
        self.program.chmod(0o755)

    def keep(self, **content):
        self.store.write_text(json.dumps({**self.content(), **content}))

    def content(self) -> dict:
        return json.loads(self.store.read_text()) if self.store.exists() else {}

    def declare(self, image: dict, template: dict | None = None, status: int = 0) -> list[str]:
        """What `rundlet` was asked to change."""
        declared = self.work / "declared.json"
        declared.write_text(
            json.dumps(
                {
                    "image": {f"{name}:latest": {"make": ["import", source, name]} for name, source in image.items()},
                    "template": {
                        f"{name}:latest": {"because": because, "make": ["build", "image", name]}
                        for name, because in (template or {}).items()
                    },
                }
            )
        )
        self.keep(log=[])
        script = Path(__file__).with_name("declare.py")
        command = [sys.executable, "-BIS", script, self.program, declared, self.work / "state.json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, status, done.stderr)
        return self.content()["log"]

    def test_made_once_and_again_when_the_definition_changes(self):
        self.assertEqual(self.declare({"a": "/1"}, {"t": 1}), ["image import /1 a", "template build image t"])
        self.assertEqual(self.declare({"a": "/1"}, {"t": 1}), [])
        self.assertEqual(self.declare({"a": "/2"}, {"t": 1}), ["image import /2 a"])
        self.assertEqual(self.declare({"a": "/2"}, {"t": 2}), ["template build image t"])

    def test_made_again_when_somebody_removed_it(self):
        self.declare({"a": "/1"})
        self.keep(image=[])
        self.assertEqual(self.declare({"a": "/1"}), ["image import /1 a"])

    def test_a_template_that_no_longer_fits_is_made_again(self):
        self.declare({"a": "/1"}, {"t": 1, "u": 1})
        self.keep(unfit=["t:latest", "a:latest"])
        self.assertEqual(self.declare({"a": "/1"}, {"t": 1, "u": 1}), ["template build image t"])

    def test_removed_when_no_longer_declared_templates_first(self):
        self.declare({"a": "/1"}, {"t": 1})
        self.assertEqual(self.declare({}), ["template rm t:latest", "image rm a:latest"])
        self.assertEqual(self.content()["image"], ["by-hand:latest"])
        self.assertEqual(self.declare({}), [])

    def test_in_use_it_is_kept_and_tried_again(self):
        self.declare({"a": "/1"})
        self.keep(used=["a:latest"])
        self.assertEqual(self.declare({}), ["image rm a:latest"])
        self.keep(used=[])
        self.assertEqual(self.declare({}), ["image rm a:latest"])
        self.assertEqual(self.content()["image"], ["by-hand:latest"])

    def test_a_failure_keeps_no_other_from_being_made_and_is_tried_again(self):
        self.assertEqual(self.declare({"a": "bad", "b": "/1"}, status=1), ["image import bad a", "image import /1 b"])
        self.assertEqual(self.declare({"a": "/2", "b": "/1"}), ["image import /2 a"])


if __name__ == "__main__":
    unittest.main()
