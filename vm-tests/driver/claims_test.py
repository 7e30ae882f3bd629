import tempfile
import time
import unittest
from pathlib import Path

from driver import claims
from driver.claims import ClaimError
from driver.machine import Machine, MachineError


class Headers(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def claim(self, text, name="a-claim"):
        path = self.folder / f"{name}.py"
        path.write_text(text)
        return path

    def test_plain_claim(self):
        claim = claims.load(self.claim("# Says something.\nmachine.succeed('true')\n"))
        self.assertEqual((claim.name, claim.fresh_worker, claim.timeout), ("a-claim", False, 600))
        self.assertIsNone(claim.skip_reason)

    def test_header_fields(self):
        claim = claims.load(self.claim("# worker: fresh\n# timeout: 1200\n# skip: needs two nodes\n"))
        self.assertEqual((claim.fresh_worker, claim.timeout), (True, 1200))
        self.assertEqual(claim.skip_reason, "needs two nodes")

    def test_only_the_first_comment_lines_are_the_header(self):
        self.assertIsNone(claims.load(self.claim("# A.\n\n# skip: no\n")).skip_reason)

    def test_wrong_fields_are_refused(self):
        for text in ("# worker: shared\n", "# timeout: long\n"):
            with self.subTest(text=text), self.assertRaises(ClaimError):
                claims.load(self.claim(text))

    def test_modules_are_not_claims(self):
        self.claim("", "bench")
        self.claim("", "second-claim")
        self.assertEqual([claim.name for claim in claims.find(self.folder)], ["second-claim"])

    def test_selection_by_name_or_path(self):
        self.claim("", "one-claim")
        self.claim("", "two-claim")
        found = claims.find(self.folder)
        self.assertEqual([c.name for c in claims.select(found, ["vm-tests/two-claim.py"])], ["two-claim"])
        self.assertEqual(claims.select(found, []), found)
        with self.assertRaisesRegex(ClaimError, "three-claim"):
            claims.select(found, ["three-claim"])

    def test_a_claim_fails_with_its_own_line_number(self):
        claim = claims.load(self.claim("x = 1\nassert x == 2, 'x is not two'\n"))
        lines = []
        outcome = claims.run(claim, Machine(self.fail, lines.append))
        self.assertIn("x is not two", outcome.error)
        self.assertIn("a-claim.py:2", outcome.error)

    def test_a_failing_subtest_fails_the_claim(self):
        claim = claims.load(self.claim("with subtest('inner'):\n    raise ValueError('no')\n"))
        lines = []
        outcome = claims.run(claim, Machine(self.fail, lines.append))
        self.assertIn("no", outcome.error)
        self.assertIn("subtest failed: inner", lines)

    def test_a_passing_claim_has_no_error(self):
        claim = claims.load(self.claim("with subtest('inner'):\n    pass\n"))
        self.assertIsNone(claims.run(claim, Machine(self.fail, lambda line: None)).error)

    def test_a_claim_ends_when_its_time_is_up(self):
        machine = Machine(self.fail, lambda line: None)
        machine.start = lambda: None
        machine._channel = object()
        machine.deadline = time.monotonic() - 1
        with self.assertRaisesRegex(MachineError, "used up its time"):
            machine.succeed("true")


if __name__ == "__main__":
    unittest.main()
