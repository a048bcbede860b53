"""Functions in processes of their own: a limit, a crash or a hang costs only its own process.

Beside them threads, for functions that do nothing but wait for tools.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LOOK_EVERY = 0.02


class Process:
    """`function()` in a fork of this process, in a process group of its own.

    The fork has every module of this process, which saves it the seconds that importing PyTorch
    takes. CUDA does not survive a fork, so this process must not have begun to use it.

    Args:
        log: the file to which the fork's output and tracebacks are added.
    """

    def __init__(self, function: Callable[[], object], log: Path) -> None:
        self.begun = time.monotonic()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        parent = os.getpid()
        self._id = os.fork()
        if self._id == 0:
            _run(function, log, parent)
        # The fork does this too: whichever comes first, kill() finds the group.
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(self._id, self._id)

    def wait(self, seconds: float) -> str:
        """Wait for the end and say which it was; kill the group after so many seconds.

        Returns:
            "done", "failed" (an exception), "exit status N", "killed by SIGNAL" or "out of time".
        """
        end = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() >= end:
                self.kill()
                return "out of time"
            time.sleep(_LOOK_EVERY)
        return _outcome(self._reap())

    def ended(self) -> bool:
        """Tell whether the process has ended; children that it leaves behind do not count."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._id, options) is not None

    def kill(self) -> None:
        """End the process with all its children."""
        self._reap()

    def _reap(self) -> int:
        # No other group can have this number until it is reaped.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._id, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._id, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self._id, 0)[1])

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun


def at_a_time() -> int:
    """The number of processes that compile side by side: two cores are left to others."""
    return max(1, min(16, os.cpu_count() or 1) - 2)


def in_parallel(
    functions: Iterable[Callable[[], object]], at_a_time: int, seconds: float, log: Path
) -> list[str]:
    """The outcome of each function, as `Process.wait` gives it, each with so many seconds."""
    waiting = list(enumerate(functions))
    running: dict[int, Process] = {}
    outcomes: dict[int, str] = {}
    while waiting or running:
        while waiting and len(running) < at_a_time:
            number, function = waiting.pop(0)
            running[number] = Process(function, log)
        for number, process in list(running.items()):
            if process.ended() or process.seconds >= seconds:
                outcomes[number] = running.pop(number).wait(0)
        time.sleep(_LOOK_EVERY)
    return [outcomes[number] for number in sorted(outcomes)]


def side_by_side(functions: Sequence[Callable[[], object]]) -> None:
    """Run functions that wait for tools, each in a thread.

    The tools stay in the process group of this process, so that whoever kills it ends them too.
    """
    with ThreadPoolExecutor(len(functions)) as threads:
        for running in [threads.submit(function) for function in functions]:
            running.result()


def _run(function: Callable[[], object], log: Path, parent: int) -> None:
    status = 1
    try:
        os.setpgid(0, 0)
        _end_with(parent)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        # Whoever forks may let signals wait meanwhile.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for output in (1, 2):
            os.dup2(file, output)
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def _end_with(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends, even by a kill."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _outcome(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return {0: "done", 1: "failed"}.get(status, f"exit status {status}")
