"""What a claim sees: `machine`, with the names and the meaning of the NixOS test driver, so that a claim runs
unchanged in both. Only what claims use is here; what is here behaves the same.
"""

import base64
import shlex
import time
from collections.abc import Callable
from pathlib import Path

from .channel import Answer, Channel, ChannelError
from .qemu import Qemu

DEFAULT_TIMEOUT = 900
# The NixOS driver asks once a second as well.
POLL_SECONDS = 1.0
COPY_CHUNK = 64 << 10


class RequestedAssertionFailed(AssertionError):
    """The claim asked for something that did not hold."""


class MachineError(Exception):
    """The machine itself failed: it did not boot, fell silent, or ended."""


class Machine:
    def __init__(self, boot: Callable[[], Qemu], log: Callable[[str], None]):
        self._boot = boot
        self._write_log = log
        self._qemu: Qemu | None = None
        self._channel: Channel | None = None
        # Until then the claim that runs has to be over; None between claims.
        self.deadline: float | None = None
        self.name = "machine"

    # -- life ---------------------------------------------------------------------------------------------

    @property
    def booted(self) -> bool:
        return self._channel is not None

    def start(self) -> None:
        """Boots, and returns when the machine takes commands. Does nothing while it runs."""
        if self.booted:
            return
        if self._qemu is not None:
            self._qemu.discard()
        started = time.monotonic()
        self._qemu = self._boot()
        try:
            self._channel = self._qemu.connect()
        except ChannelError as error:
            raise MachineError(f"the worker did not boot: {error}") from error
        self.log(f"worker up in {time.monotonic() - started:.1f} s")

    def shutdown(self) -> None:
        """An orderly power-off."""
        if not self.booted:
            return
        assert self._qemu is not None
        self._run("systemctl --no-block start poweroff.target", 60)
        self._close_channel()
        try:
            self._qemu.wait(120)
        except Exception as error:
            raise MachineError("the worker did not power off") from error

    def crash(self) -> None:
        """Pulls the plug."""
        self._close_channel()
        if self._qemu is not None:
            self._qemu.kill()

    def reboot(self) -> None:
        """Down and up again. The worker's disks are volatile, so this is a fresh machine."""
        self.shutdown()
        self.start()

    def discard(self) -> None:
        """For the driver: ends the machine and forgets its logs."""
        self._close_channel()
        if self._qemu is not None:
            self._qemu.discard()
            self._qemu = None

    def console_text(self) -> str:
        if self._qemu is None:
            return ""
        text = self._qemu.console_log.read_text(errors="replace") if self._qemu.console_log.exists() else ""
        return text + self._qemu.log_text()

    def log(self, message: str) -> None:
        self._write_log(message)

    # -- commands -----------------------------------------------------------------------------------------

    def execute(
        self, command: str, check_return: bool = True, check_output: bool = True, timeout: int | None = DEFAULT_TIMEOUT
    ) -> tuple[int, str]:
        """Runs `command` in bash with errexit, nounset and pipefail; returns status and standard output."""
        status, output, _ = self._run(command, timeout or DEFAULT_TIMEOUT)
        if not check_output:
            return -2, ""
        return (status if check_return else -1), output

    def succeed(self, *commands: str, timeout: int | None = None) -> str:
        """Runs the commands, each of which must exit 0; returns what they printed."""
        outputs = []
        for command in commands:
            status, output, errors = self._run(command, timeout or DEFAULT_TIMEOUT)
            if status != 0:
                raise RequestedAssertionFailed(_failure(f"command `{command}` failed", status, output, errors))
            outputs.append(output)
        return "".join(outputs)

    def fail(self, *commands: str, timeout: int | None = None) -> str:
        """Runs the commands, each of which must exit with another status than 0."""
        outputs = []
        for command in commands:
            status, output, errors = self._run(command, timeout or DEFAULT_TIMEOUT)
            if status == 0:
                raise RequestedAssertionFailed(
                    _failure(f"command `{command}` unexpectedly succeeded", status, output, errors)
                )
            outputs.append(output)
        return "".join(outputs)

    def wait_until_succeeds(self, command: str, timeout: int = DEFAULT_TIMEOUT) -> str:
        return self._wait_until(command, lambda status: status == 0, timeout)

    def wait_until_fails(self, command: str, timeout: int = DEFAULT_TIMEOUT) -> str:
        return self._wait_until(command, lambda status: status != 0, timeout)

    def wait_for_file(self, filename: str, timeout: int = DEFAULT_TIMEOUT) -> None:
        self.wait_until_succeeds(f"test -e {shlex.quote(filename)}", timeout)

    def sleep(self, secs: int) -> None:
        """Sleeps in the machine's time."""
        self.succeed(f"sleep {secs}")

    # -- systemd ------------------------------------------------------------------------------------------

    def systemctl(self, q: str) -> tuple[int, str]:
        return self.execute(f"systemctl {q}")

    def get_unit_info(self, unit: str) -> dict[str, str]:
        status, lines = self.systemctl(f"--no-pager show {shlex.quote(unit)}")
        if status != 0:
            raise RequestedAssertionFailed(f"systemctl show {unit} exited with {status}")
        return dict(line.split("=", 1) for line in lines.splitlines() if "=" in line)

    def wait_for_unit(self, unit: str, user: str | None = None, timeout: int = DEFAULT_TIMEOUT) -> None:
        """Waits until a unit is active; gives up when it has failed or nothing is about to start it."""
        if user is not None:
            raise MachineError("units of a user are not to be had in this worker")
        end = time.monotonic() + timeout
        while True:
            info = self.get_unit_info(unit)
            state = info.get("ActiveState", "unknown")
            if state == "active":
                return
            if state == "failed":
                raise RequestedAssertionFailed(f"unit {unit} has failed")
            if state == "inactive" and "No jobs" in self.systemctl("list-jobs --full 2>&1")[1]:
                if self.get_unit_info(unit).get("ActiveState") == state:
                    raise RequestedAssertionFailed(f"unit {unit} is inactive and there are no pending jobs")
            if time.monotonic() > end:
                raise RequestedAssertionFailed(f"unit {unit} was not active within {timeout} s")
            time.sleep(POLL_SECONDS)

    def start_job(self, jobname: str) -> tuple[int, str]:
        return self.systemctl(f"start {jobname}")

    def stop_job(self, jobname: str) -> tuple[int, str]:
        return self.systemctl(f"stop {jobname}")

    # -- files --------------------------------------------------------------------------------------------

    def copy_from_host(self, source: str, target: str) -> None:
        """Copies a file or folder of the host into the machine (small ones: it goes through the shell)."""
        top = Path(source)
        if not top.exists():
            raise MachineError(f"copy_from_host: {source} does not exist")
        for path in [top, *sorted(top.rglob("*"))]:
            place = shlex.quote(str(Path(target) / path.relative_to(top)) if path != top else target)
            if path.is_dir():
                self.succeed(f"mkdir -p {place}")
                continue
            self.succeed(f"mkdir -p $(dirname {place}); : >{place}; chmod {path.stat().st_mode & 0o777:o} {place}")
            data = path.read_bytes()
            for start in range(0, len(data), COPY_CHUNK):
                text = base64.b64encode(data[start : start + COPY_CHUNK]).decode()
                self.succeed(f"base64 -d <<<{text} >>{place}")

    def copy_from_vm(self, source: str, target_dir: str = "") -> None:
        """Copies a file or folder of the machine into a folder of the host."""
        place = Path(target_dir or ".")
        place.mkdir(parents=True, exist_ok=True)
        kind, names = self.execute(f"cd {shlex.quote(source)} 2>/dev/null && find . -type f")
        relative = [line for line in names.splitlines() if kind == 0]
        if kind != 0:
            relative = [""]
        for name in relative:
            text = self.succeed(f"base64 -w 0 {shlex.quote(str(Path(source) / name))}")
            copy = place / Path(source).name / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(base64.b64decode(text))

    # -- inside -------------------------------------------------------------------------------------------

    def _wait_until(self, command: str, good: Callable[[int], bool], timeout: int) -> str:
        end = time.monotonic() + timeout
        while True:
            limit = max(1.0, end - time.monotonic())
            status, output, errors = self._run(command, limit)
            if good(status):
                return output
            if time.monotonic() + POLL_SECONDS > end:
                raise RequestedAssertionFailed(
                    _failure(f"`{command}` did not come to what was awaited in {timeout} s", status, output, errors)
                )
            time.sleep(POLL_SECONDS)

    def raw(self, command: str, timeout: float) -> Answer:
        """For the driver: one command in plain bash; bytes as they came."""
        self.start()
        assert self._channel is not None
        if self.deadline is not None:
            remaining = self.deadline - time.monotonic()
            if remaining <= 0:
                raise MachineError("the claim has used up its time")
            timeout = min(timeout, remaining)
        try:
            return self._channel.run(command, timeout)
        except ChannelError as error:
            self._close_channel()
            raise MachineError(str(error)) from error

    def _run(self, command: str, timeout: float) -> tuple[int, str, str]:
        self.start()
        self.log(f"$ {command}")
        started = time.monotonic()
        answer = self.raw(f"set -euo pipefail; {command}", timeout)
        output, errors = answer.stdout.decode(errors="replace"), answer.stderr.decode(errors="replace")
        seconds = time.monotonic() - started
        self.log(_indented(output, "| ") + _indented(errors, "! ") + f"  [{answer.status}, {seconds:.1f} s]")
        return answer.status, output, errors

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _failure(what: str, status: int, output: str, errors: str) -> str:
    text = f"{what} (exit code {status})"
    for name, content in (("stdout", output), ("stderr", errors)):
        if content.strip():
            text += f"\n{name}: {content.strip()[-4000:]}"
    return text


def _indented(text: str, mark: str) -> str:
    kept = text if len(text) <= 8000 else f"{text[:4000]}\n[{len(text) - 8000} characters left out]\n{text[-4000:]}"
    return "".join(f"  {mark}{line}\n" for line in kept.splitlines())
