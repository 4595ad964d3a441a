"""`taskpgm` as a user starts it, in a process of its own, with whatever it starts in turn."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

MARK = "TASKPGM_TEST_DRIVER"  # in the environment of the driver and of all that come from it


class Driver:
    """A command that runs.

    Args:
        arguments: of `taskpgm`.
        log: gets both outputs.
        more: what is added to the environment.
    """

    def __init__(self, *arguments, log, **more):
        self.mark, self.log = uuid.uuid4().hex, Path(log)
        path = os.pathsep.join(part for part in sys.path if part)
        env = os.environ | {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", MARK: self.mark} | more
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "taskpgm", *map(str, arguments)], stdout=file, stderr=file, env=env,
                start_new_session=True,
            )  # fmt: skip

    def ended(self, seconds=180):
        """Its exit code, and what it printed."""
        return self.process.wait(seconds), self.log.read_text()

    def interrupt(self):
        """Ctrl-C in a terminal: every process of the foreground group hears it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self):
        """End the driver alone, without grace."""
        self.process.kill()
        self.process.wait()

    def started(self):
        """Processes that run and came from it, by their number: what they are called."""
        return {pid: name for pid, name in running(self.mark).items() if pid != self.process.pid}


def running(mark):
    """Processes with that mark, zombies left out."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
                if state not in "ZX":
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def until(true, seconds=60, what="it"):
    """Wait for something to be true."""
    stop = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < stop, f"{what} did not come within {seconds} s"
        time.sleep(0.05)
    return found
