"""Other actors: calls made with other credentials or by other processes.

`in_child` forks, because credentials, umask and POSIX locks belong to a whole process. The child
runs nothing but the given function and ends with _exit: no fixture is torn down twice.
"""

import os
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar, cast

from tests.posix.calls import result

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class User:
    """Credentials without any capability."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ALICE = User(65534, 65534)
BOB = User(65533, 65533)
MEMBER = User(65532, 65532, (65534,))
"""A third user who is in Alice's group."""


def _become(user: User) -> None:
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)


def _fork() -> int:
    with warnings.catch_warnings():
        # Newer Pythons warn about fork with threads; the child starts none and ends with _exit.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


class Child:
    """A forked process that runs `act` and hands back its value or its OSError."""

    def __init__(self, act: Callable[[], Any], *, user: User | None = None) -> None:
        self._reply, write_end = os.pipe()
        self._pid = _fork()
        if self._pid == 0:
            self._run(act, user, write_end)
        os.close(write_end)

    @staticmethod
    def _run(act: Callable[[], Any], user: User | None, write_end: int) -> None:
        try:
            if user is not None:
                _become(user)
            reply = ("value", act())
        except OSError as failure:
            reply = ("errno", failure.errno)
        except BaseException:
            reply = ("failure", traceback.format_exc())
        with os.fdopen(write_end, "wb") as pipe:
            pickle.dump(reply, pipe)
        os._exit(0)

    def join(self) -> Any:
        """The value of `act`; raises what it raised (OSError by errno, else AssertionError)."""
        with os.fdopen(self._reply, "rb") as pipe:
            encoded = pipe.read()
        os.waitpid(self._pid, 0)
        if not encoded:
            raise AssertionError("the child process died without an answer")
        kind, value = pickle.loads(encoded)
        if kind == "errno":
            raise OSError(value, os.strerror(value))
        if kind == "failure":
            raise AssertionError(f"in the child process:\n{value}")
        return value

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        os.kill(self._pid, signal.SIGKILL)
        os.close(self._reply)
        os.waitpid(self._pid, 0)


class Umask:
    """The umask of this process, set for a `with` block."""

    def __init__(self, mask: int) -> None:
        self._mask = mask

    def __enter__(self) -> None:
        self._old = os.umask(self._mask)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.umask(self._old)


def in_child(act: Callable[[], T], *, user: User | None = None) -> T:
    """Run `act` in a forked child, as `user` when given, and return what it returned."""
    return cast(T, Child(act, user=user).join())


def result_as(user: User, call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """`calls.result` of a call that `user` makes."""
    return in_child(lambda: result(call, *args, **kwargs), user=user)
