import subprocess
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from driver import machine
from driver.channel import Answer, ChannelError
from driver.machine import Machine, MachineError, RequestedAssertionFailed


class LocalChannel:
    """Runs the worker's commands in a bash of this host, in place of a worker."""

    def __init__(self):
        self.wedged = False

    def run(self, command, limit):
        if self.wedged:
            raise ChannelError("fell silent")
        try:
            done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            return Answer(124, b"", b"")
        return Answer(done.returncode, done.stdout, done.stderr)

    def close(self):
        pass


class Commands(unittest.TestCase):
    def setUp(self):
        self.lines = []
        self.channel = LocalChannel()
        self.machine = Machine(self.fail, self.lines.append)
        self.machine._channel = self.channel
        quick = mock.patch.object(machine, "POLL_SECONDS", 0.05)
        quick.start()
        self.addCleanup(quick.stop)

    def test_succeed_returns_what_all_commands_printed(self):
        self.assertEqual(self.machine.succeed("echo one", "echo two"), "one\ntwo\n")

    def test_succeed_raises_with_status_and_both_outputs(self):
        with self.assertRaisesRegex(RequestedAssertionFailed, r"(?s)exit code 3.*stdout: out.*stderr: err"):
            self.machine.succeed("echo out; echo err >&2; exit 3")

    def test_a_failure_inside_a_pipe_or_before_the_end_counts(self):
        for command in ("false | cat", "false; true", "echo $NO_SUCH_VARIABLE"):
            with self.subTest(command=command), self.assertRaises(RequestedAssertionFailed):
                self.machine.succeed(command)

    def test_fail_is_the_opposite(self):
        self.machine.fail("exit 7")
        with self.assertRaisesRegex(RequestedAssertionFailed, "unexpectedly succeeded"):
            self.machine.fail("true")

    def test_execute_reports_and_does_not_raise(self):
        self.assertEqual(self.machine.execute("echo x; exit 5"), (5, "x\n"))
        self.assertEqual(self.machine.execute("sleep 60", timeout=1)[0], 124)

    def test_waiting_until_it_holds(self):
        self.machine.wait_until_succeeds("true", timeout=1)
        self.machine.wait_until_fails("false", timeout=1)
        with self.assertRaisesRegex(RequestedAssertionFailed, "1 s"):
            self.machine.wait_until_succeeds("false", timeout=1)

    def test_a_wedged_machine_is_no_failed_assertion_and_counts_as_down(self):
        self.channel.wedged = True
        with self.assertRaisesRegex(MachineError, "fell silent"):
            self.machine.execute("true")
        self.assertFalse(self.machine.booted)

    def test_files_travel_both_ways(self):
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        source, copy = folder / "a", folder / "copies" / "b c"
        source.write_bytes(bytes(range(256)) * 2000)
        self.machine.copy_from_host(str(source), str(copy))
        self.assertEqual(copy.read_bytes(), source.read_bytes())
        self.machine.copy_from_vm(str(copy), str(folder / "back"))
        self.assertEqual((folder / "back" / "b c").read_bytes(), source.read_bytes())

    def test_units(self):
        states = iter(("activating", "active"))
        with mock.patch.object(self.machine, "get_unit_info", lambda unit: {"ActiveState": next(states)}):
            self.machine.wait_for_unit("some.service")
        with mock.patch.object(self.machine, "get_unit_info", lambda unit: {"ActiveState": "failed"}):
            with self.assertRaisesRegex(RequestedAssertionFailed, "has failed"):
                self.machine.wait_for_unit("some.service")

    def test_the_log_holds_the_command_its_output_and_its_status(self):
        self.machine.execute("echo seen; exit 2")
        text = "\n".join(self.lines)
        for words in ("$ echo seen; exit 2", "| seen", "[2,"):
            self.assertIn(words, text)


if __name__ == "__main__":
    unittest.main()
