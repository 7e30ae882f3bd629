"""Commands for the worker, over a stream socket that ends in a virtio port.

The other end is worker/root/usr/local/lib/rundlet-worker/shell; the two lines of the protocol are described there.
An answer to an earlier request (one that was given up) is dropped by its number.
"""

import base64
import select
import socket
import time
from dataclasses import dataclass

# What the worker may need, beyond the command's own limit, to say that it killed the command.
GRACE_SECONDS = 30
# One answer line is bounded so that a mad worker cannot fill the host's memory.
MAX_LINE = 512 << 20


class ChannelError(Exception):
    """The worker does not answer: it is wedged or gone."""


@dataclass(frozen=True)
class Answer:
    status: int
    stdout: bytes
    stderr: bytes


def encode_request(number: int, limit: int, command: str) -> bytes:
    packed = base64.b64encode(command.encode()).decode()
    return f"{number} {limit} {packed}\n".encode()


def decode_answer(line: bytes) -> tuple[int, Answer]:
    """Splits an answer line; raises ValueError when it is none."""
    number, status, stdout, stderr = line.split()
    return int(number), Answer(int(status), _unpack(stdout), _unpack(stderr))


def _unpack(field: bytes) -> bytes:
    return b"" if field == b"-" else base64.b64decode(field, validate=True)


class Channel:
    def __init__(self, stream: socket.socket):
        self._stream = stream
        self._stream.setblocking(False)
        self._pending = bytearray()
        self._last_number = 0

    def close(self) -> None:
        self._stream.close()

    def wait_ready(self, timeout: float) -> None:
        """Waits for the greeting that the worker's shell sends once it runs."""
        deadline = time.monotonic() + timeout
        while not self._read_line(deadline, "boot").startswith(b"ready "):
            pass

    def run(self, command: str, limit: float) -> Answer:
        """Runs `command` in a fresh bash; status 124 means that `limit` seconds were not enough."""
        self._last_number += 1
        number = self._last_number
        whole_seconds = max(1, round(limit))
        deadline = time.monotonic() + whole_seconds + GRACE_SECONDS
        self._write(encode_request(number, whole_seconds, command), deadline)
        while True:
            line = self._read_line(deadline, f"the end of: {command}")
            if line.startswith(b"ready "):
                raise ChannelError(f"the worker's shell started anew during: {command}")
            try:
                answered, answer = decode_answer(line)
            except ValueError as error:
                raise ChannelError(f"not an answer: {line[:80]!r}") from error
            if answered == number:
                return answer

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            remaining = max(0.0, deadline - time.monotonic())
            if not select.select([], [self._stream], [], remaining)[1]:
                raise ChannelError("the worker takes no commands")
            try:
                view = view[self._stream.send(view):]
            except OSError as error:
                raise ChannelError(f"the worker is gone ({error})") from error

    def _read_line(self, deadline: float, what: str) -> bytes:
        searched = 0
        while True:
            end = self._pending.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._pending[:end])
                del self._pending[: end + 1]
                return line
            searched = len(self._pending)
            if searched > MAX_LINE:
                raise ChannelError(f"an answer of more than {MAX_LINE} bytes")
            remaining = max(0.0, deadline - time.monotonic())
            if not select.select([self._stream], [], [], remaining)[0]:
                raise ChannelError(f"the worker fell silent while waiting for {what}")
            try:
                data = self._stream.recv(1 << 20)
            except OSError as error:
                raise ChannelError(f"the worker is gone ({error})") from error
            if not data:
                raise ChannelError(f"the worker ended while waiting for {what}")
            self._pending += data
