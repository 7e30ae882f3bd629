import base64
import socket
import threading
import time
import unittest
from unittest import mock

from driver import channel
from driver.channel import Answer, Channel, ChannelError, decode_answer, encode_request


class Framing(unittest.TestCase):
    def test_a_request_is_one_line_whatever_the_command_holds(self):
        line = encode_request(7, 30, "echo 'a\nb' \u00e4")
        self.assertEqual(line.count(b"\n"), 1)
        number, limit, packed = line.split()
        self.assertEqual((number, limit), (b"7", b"30"))
        self.assertEqual(base64.b64decode(packed).decode(), "echo 'a\nb' \u00e4")

    def test_an_answer_carries_status_and_both_outputs(self):
        line = b"3 137 " + base64.b64encode(b"out\n\0") + b" -"
        self.assertEqual(decode_answer(line), (3, Answer(137, b"out\n\0", b"")))

    def test_what_is_no_answer_is_refused(self):
        for line in (b"", b"1 2 3", b"x 0 - -", b"1 0 - *bad*", b"1 0 - - -"):
            with self.subTest(line=line), self.assertRaises(ValueError):
                decode_answer(line)


class WithWorker(unittest.TestCase):
    """The worker's side is played by the test, on the other end of a socket pair."""

    def setUp(self):
        ours, self.worker = socket.socketpair()
        self.channel = Channel(ours)
        self.addCleanup(self.worker.close)
        self.addCleanup(self.channel.close)
        shortened = mock.patch.object(channel, "GRACE_SECONDS", 0.2)
        shortened.start()
        self.addCleanup(shortened.stop)

    def play(self, *steps):
        """Answers requests in the background: each step is given the request's number and returns bytes."""

        def worker():
            requests = self.worker.makefile("rb")
            for step in steps:
                number = int(requests.readline().split()[0])
                for piece in step(number):
                    self.worker.sendall(piece)

        thread = threading.Thread(target=worker, daemon=True)
        thread.start()
        self.addCleanup(thread.join)

    def test_greeting_is_awaited_past_noise(self):
        self.worker.sendall(b"noise\nready 1234\n")
        self.channel.wait_ready(1)

    def test_no_greeting_is_an_error_after_the_timeout(self):
        started = time.monotonic()
        with self.assertRaisesRegex(ChannelError, "fell silent"):
            self.channel.wait_ready(0.1)
        self.assertLess(time.monotonic() - started, 5)

    def test_an_answer_may_come_in_pieces(self):
        self.play(lambda number: [b"%d 0" % number, b" aGVsbG8", b"= -\n"])
        self.assertEqual(self.channel.run("echo hello", 5), Answer(0, b"hello", b""))

    def test_a_late_answer_to_an_earlier_command_is_dropped(self):
        self.play(lambda number: [], lambda number: [b"%d 1 - -\n%d 0 - -\n" % (number - 1, number)])
        with self.assertRaises(ChannelError):
            self.channel.run("sleep 100", 0.1)
        self.assertEqual(self.channel.run("true", 5).status, 0)

    def test_silence_past_the_limit_is_an_error_that_names_the_command(self):
        self.play(lambda number: [])
        with self.assertRaisesRegex(ChannelError, "sleep 100"):
            self.channel.run("sleep 100", 0.1)

    def test_a_worker_that_ends_is_told_apart_from_a_slow_one(self):
        def end(_number):
            self.worker.shutdown(socket.SHUT_RDWR)
            return []

        self.play(end)
        with self.assertRaisesRegex(ChannelError, "ended|gone"):
            self.channel.run("true", 5)

    def test_a_shell_that_starts_anew_lost_the_command(self):
        self.play(lambda number: [b"ready 99\n"])
        with self.assertRaisesRegex(ChannelError, "started anew"):
            self.channel.run("kill -9 $PPID", 5)

    def test_an_endless_answer_is_cut_off(self):
        with mock.patch.object(channel, "MAX_LINE", 1000):
            self.play(lambda number: [b"x" * 5000])
            with self.assertRaisesRegex(ChannelError, "more than 1000 bytes"):
                self.channel.run("yes", 5)


if __name__ == "__main__":
    unittest.main()
