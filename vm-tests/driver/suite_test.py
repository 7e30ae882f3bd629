import tempfile
import unittest
from pathlib import Path
from unittest import mock

from driver import claims
from driver.channel import Answer
from driver.claims import Claim, Outcome
from driver.passes import Passes
from driver.suite import EMULATOR_DEATHS, Suite


class Suites(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.said = []
        self.outcomes = []
        self.console = ""
        self.enterContext(mock.patch.object(claims, "run", self.run_claim))
        self.machine = self.enterContext(mock.patch("driver.suite.Machine")).return_value
        self.machine.console_text.side_effect = lambda: self.console
        self.left = []
        self.machine.raw.side_effect = lambda command, timeout: Answer(0, self.left.pop(0) if self.left else b"", b"")

    def run_claim(self, claim, machine):
        return self.outcomes.pop(0)

    def claim(self, name="it-holds", **options):
        path = self.folder / f"{name}.py"
        path.write_text("pass\n")
        return Claim(name, path, **options)

    def suite(self, **options):
        return Suite(mock.Mock(), self.folder / "results", self.said.append, **options)

    def outcome(self, claim, error=None, machine_failed=False):
        self.outcomes.append(Outcome(claim, 1.0, error, machine_failed))

    def test_a_worker_that_the_emulator_ended_is_one_more_try_and_is_told(self):
        claim, self.console = self.claim(), f"[ 75.9] {EMULATOR_DEATHS[0]} at 00"
        self.outcome(claim, "MachineError: ended", machine_failed=True)
        self.outcome(claim)
        suite = self.suite()
        self.assertTrue(suite.run([claim], 1))
        self.assertEqual(suite.summary(), "1 passed, 0 failed, 1 run again after the emulator ended their worker")
        self.assertTrue(any(line.startswith("again   it-holds") for line in self.said), self.said)

    def test_it_gets_no_third_try(self):
        claim, self.console = self.claim(), EMULATOR_DEATHS[0]
        self.outcome(claim, "MachineError: ended", machine_failed=True)
        self.outcome(claim, "MachineError: ended", machine_failed=True)
        self.assertFalse(self.suite().run([claim], 1))

    def test_other_deaths_and_failed_claims_are_failures_at_once(self):
        for console, machine_failed, emulated in (
            ("Kernel panic - not syncing: of our own making", True, True),
            (EMULATOR_DEATHS[0], False, True),
            (EMULATOR_DEATHS[0], True, False),
        ):
            claim, self.console = self.claim(), console
            self.outcome(claim, "it did not hold", machine_failed)
            suite = self.suite(emulated=emulated)
            self.assertFalse(suite.run([claim], 1))
            self.assertEqual((len(suite.failed), len(suite.again), self.outcomes), (1, 0, []))

    def test_a_worker_in_which_something_was_left_does_not_serve_the_next_claim(self):
        for left, discarded in (([b"process vhost-blk-ro", b""], 2), ([b"", b""], 1)):
            first, second, self.left = self.claim(), self.claim("it-holds-too"), left
            self.machine.discard.reset_mock()
            self.outcome(first)
            self.outcome(second)
            self.assertTrue(self.suite().run([first, second], 1))
            self.assertEqual(self.machine.discard.call_count, discarded, left)

    def test_the_longest_come_first_and_those_with_a_worker_of_their_own_last(self):
        wanted = [
            self.claim("c", timeout=9, fresh_worker=True),
            self.claim("a", timeout=7),
            self.claim("d", timeout=8, fresh_worker=True),
            self.claim("b", timeout=6),
        ]
        for claim in sorted(wanted, key=lambda claim: claim.name):
            self.outcome(claim)
        suite = self.suite()
        began = []
        with mock.patch.object(claims, "run", lambda claim, machine: began.append(claim.name) or self.outcomes.pop(0)):
            suite.run(wanted, 1)
        self.assertEqual(began, ["a", "b", "c", "d"])

    def test_what_was_left_is_told_in_the_claims_log(self):
        claim, self.left = self.claim(), [b"process vhost-blk-ro"]
        self.outcome(claim)
        self.assertTrue(self.suite().run([claim], 1))
        log = (self.folder / "results" / "it-holds" / "claim.log").read_text()
        self.assertIn("process vhost-blk-ro", log)

    def test_what_has_passed_with_the_same_programs_is_not_run_again(self):
        claim, passes = self.claim(), Passes(self.folder / "passes", "programs")
        self.outcome(claim)
        self.assertTrue(self.suite(passes=passes).run([claim], 1))
        suite = self.suite(passes=passes)
        self.assertTrue(suite.run([claim], 1))
        self.assertIn("1 passed (1 of them before", suite.summary())
        self.outcome(claim)
        distrustful = self.suite(passes=Passes(self.folder / "passes", "programs", trust=False))
        self.assertTrue(distrustful.run([claim], 1))
        self.assertEqual((distrustful.summary(), self.outcomes), ("1 passed, 0 failed", []))

    def test_a_failure_is_not_remembered(self):
        claim, passes = self.claim(), Passes(self.folder / "passes", "programs")
        self.outcome(claim, "it did not hold")
        self.assertFalse(self.suite(passes=passes).run([claim], 1))
        self.assertFalse(passes.has(claim))


if __name__ == "__main__":
    unittest.main()
