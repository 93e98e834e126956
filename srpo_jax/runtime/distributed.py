"""Several processes as one machine: start-up, and a stop that all of them take at the same step.

Environment variables (set by launch/local.sh, or by hand on machines nothing else describes):

- SRPO_COORDINATOR: host:port of process 0, on which it listens and which all others can reach;
- SRPO_PROCESSES: how many processes there are;
- SRPO_PROCESS_ID: which one this is, from 0;
- SRPO_DISTRIBUTED=cluster: what mode "auto" means here (set by launch/tpu_vm.sh).
- SRPO_HEARTBEAT: seconds without a sign of life after which a process counts as dead, and all others end,
  wherever they wait (default 100).
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Self, TypeVar, cast

import jax
from jax._src.distributed import global_state  # the coordinator's client; nothing public gives it
from jax.experimental import multihost_utils

from srpo_jax.runtime.errors import Unavailable, UserError
from srpo_jax.runtime.program import PLACE

MODES = ("auto", "cluster", "none")

T = TypeVar("T")
_PATIENCE_MS = 20_000  # of one question to the coordinator, which is asked again
_FAREWELL_MS = 5_000  # that a process which fails waits for the others to hear of it
_asked = 0  # how often `from_main` has been called

_VARIABLES = ("SRPO_COORDINATOR", "SRPO_PROCESSES", "SRPO_PROCESS_ID")


def initialize(mode: str = "auto", timeout: int = 300) -> None:
    """Joins the other processes; the first thing a program does with JAX.

    Args:
        mode: "auto": as the environment variables above say, one process when there are none.
            "cluster": JAX finds the others by itself, on TPU pods, SLURM, GKE and Open MPI.
            "none": one process, whatever the environment says.
        timeout: seconds to wait for the others.

    Raises:
        UserError: what the environment says is wrong, or a port or device cannot be opened.
        Unavailable: the processes did not come together; host, process and coordinator come first.
    """
    if mode not in MODES:
        raise UserError(f"config.distributed is {mode!r}: choose one of {', '.join(MODES)}")
    if mode == "none":
        return
    if mode == "auto" and any(name in os.environ for name in _VARIABLES):
        _join(*_settings(), timeout)
    elif mode == "cluster" or os.environ.get("SRPO_DISTRIBUTED") == "cluster":
        host = socket.gethostname()
        _connect(
            {},
            timeout,
            f"host {host}: cannot join the cluster",
            "the other processes were not all there",
        )
    if jax.distributed.is_initialized():
        _meet()


def from_main(work: Callable[[], T]) -> T:
    """What `work` returns in process 0, which alone calls it; all processes call this, in the same order.

    T: anything JSON holds. The others wait at the coordinator, however long it takes, and no device is
    busy with it. What fails there fails everywhere, with one exit status: see `_failure`. `Unavailable`
    where process 0 is gone.
    """
    if jax.process_count() == 1:
        return work()
    global _asked
    _asked += 1
    key = f"srpo_jax/from_main/{_asked}"
    # Collectives over devices have time limits of their own; hours of a judge's work are no failure.
    client: Any = global_state.client
    heard = functools.partial(_together, client, f"{key}/heard")
    if jax.process_index() != 0:
        return cast(T, _received(_wait(client, key), heard))
    try:
        value = work()
        said = json.dumps(["", value])
    except BaseException as error:
        client.key_value_set(key, _failure(error))
        heard()  # this process is the coordinator: with it the sentence would be gone
        raise
    client.key_value_set(key, said)
    return value


def everywhere(work: Callable[[], T]) -> list[T]:
    """What `work` returns in each process, in their order; all processes call this, in the same order.

    T: anything JSON holds. Each waits for all, however long it takes; what fails in one fails there at
    once, and in the others when they are done.
    """
    if jax.process_count() == 1:
        return [work()]
    global _asked
    _asked += 1
    key = f"srpo_jax/everywhere/{_asked}"
    client: Any = global_state.client
    own = f"{key}/{jax.process_index()}"
    try:
        said = json.dumps(["", work()])
    except BaseException as error:
        client.key_value_set(own, _failure(error))
        raise
    client.key_value_set(own, said)
    found = [_wait(client, f"{key}/{i}") for i in range(jax.process_count())]
    return [cast(T, _received(one)) for one in found]


def require_alike(records: Iterable[Any], otherwise: str) -> None:
    """UserError in all processes, which all call this, where one has other records than process 0.

    records: plain ones, which `repr` tells apart. otherwise: what such a process does, in the middle of a
    sentence.
    """
    digest = hashlib.sha256()
    for one in records:
        digest.update(repr(one).encode())
    first, *others = everywhere(digest.hexdigest)
    for process, other in enumerate(others, 1):
        if other != first:
            raise UserError(
                f"process {process} {otherwise} than process 0: bring all hosts the same files"
            )


# By what the other processes end where one has failed: with the status of that one, so that whatever starts
# a run again sees one status, not a mistake of the user's beside a machine that is gone.
_ENDS = {"mistake": UserError, "other": Unavailable}


def _failure(error: BaseException) -> str:
    """What the other processes are told of a failure in this one, for `_received`."""
    said = isinstance(error, UserError)
    of_user = said and not isinstance(error, Unavailable)
    of_place = isinstance(error, OSError) and error.errno in PLACE
    sentence = str(error) if said else f"process {jax.process_index()} failed: {error!r}"
    return json.dumps(["mistake" if of_user or of_place else "other", sentence])


def _received(said: str, heard: Callable[[], None] = lambda: None) -> Any:
    """The value that another process tells, or its failure, raised once `heard` has been called."""
    failed, value = json.loads(said)
    if failed:
        heard()
        raise _ENDS[failed](value)
    return value


def _together(client: Any, key: str) -> None:
    """Waits for all processes, but not for long: some may be busy, or gone."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.wait_at_barrier(key, _FAREWELL_MS)


def _wait(client: Any, key: str) -> str:
    while True:
        try:
            return cast(str, client.blocking_key_value_get(key, _PATIENCE_MS))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise Unavailable(f"another process is gone: {_reason(error)}") from error


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a question that the loop asks at each step.

        with StopSignal() as stop:
            for step in range(start, steps):
                ...
                if stop.requested(step):
                    break

    A signal to one process stops all of them after the same step. A second Ctrl-C ends the process
    at once. Use it in the main thread.
    """

    def __init__(self) -> None:
        self._received = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Under jax.distributed JAX itself catches SIGTERM, a machine's notice that it will be taken
        # away, and tells the other processes.
        watched = (
            [signal.SIGINT] if jax.distributed.is_initialized() else [signal.SIGINT, signal.SIGTERM]
        )
        for number in watched:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def requested(self, step: int) -> bool:
        """Whether to stop after this step. All processes ask at every step, and agree.

        With several processes this costs no communication between devices: JAX's coordinator
        chooses a step none of them has reached yet, so the answer comes a few steps after a signal.
        """
        if jax.distributed.is_initialized():
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._received

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        # The operating system's own reaction ends even a process that is deep in compiled code.
        signal.signal(number, signal.SIG_DFL)
        os.write(2, b"stopping at the next step; once more (Ctrl-C) aborts without saving\n")
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)


def _settings() -> tuple[str, int, int]:
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"{', '.join(missing)} is not set, though others of {', '.join(_VARIABLES)} are: set "
            "all three or none"
        )
    coordinator, processes, process = (os.environ[name] for name in _VARIABLES)
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"SRPO_COORDINATOR is {coordinator!r}: it must be host:port")
    if not (processes.isdecimal() and process.isdecimal() and int(process) < int(processes)):
        raise UserError(
            f"SRPO_PROCESS_ID is {process!r} and SRPO_PROCESSES {processes!r}: they must be whole "
            "numbers, the first less than the second"
        )
    return coordinator, int(processes), int(process)


def _heartbeat() -> int:
    given = os.environ.get("SRPO_HEARTBEAT", "100")
    if not given.isdecimal() or int(given) < 1:
        raise UserError(
            f"SRPO_HEARTBEAT is {given!r}: it must be a whole number of seconds above 0"
        )
    return int(given)


def _join(coordinator: str, processes: int, process: int, timeout: int) -> None:
    who = (
        f"process {process} of {processes} on host {socket.gethostname()}: cannot join the "
        f"coordinator {coordinator}"
    )
    if process == 0:
        _check_port(int(coordinator.rpartition(":")[2]), who)
        waited = "other processes did not come: look at what they say"
    else:
        waited = "process 0 is not there, or cannot be reached from here"
    arguments = {
        "coordinator_address": coordinator,
        "num_processes": processes,
        "process_id": process,
    }
    _connect(arguments, timeout, who, waited)


def _check_port(port: int, who: str) -> None:
    """JAX ends with a segmentation fault when the coordinator's port is taken."""
    try:
        if socket.has_dualstack_ipv6():
            socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
        else:
            socket.create_server(("", port)).close()
    except OSError as error:
        raise UserError(f"{who}: port {port} cannot be opened here: {error.strerror}") from error


def _connect(arguments: dict[str, Any], timeout: int, who: str, waited: str) -> None:
    """`jax.distributed.initialize`, which would abort the process when its own time is up."""
    failures: list[Exception] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(**arguments, initialization_timeout=timeout + 60)
        except Exception as error:
            failures.append(error)

    arguments = arguments | {"heartbeat_timeout_seconds": _heartbeat()}
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise Unavailable(f"{who}: {waited} (waited {timeout} s)")
    if failures:
        raise _at_fault(failures[0], f"{who}: {_reason(failures[0])}") from failures[0]


def _meet() -> None:
    """Opens the devices of all processes: a mistake that one finds after this is told by each."""
    try:
        multihost_utils.sync_global_devices("all processes have started")
    except RuntimeError as error:
        raise _at_fault(
            error,
            f"host {socket.gethostname()}: cannot open the devices of all processes: "
            f"{_reason(error)} (look first at what the other processes say)",
        ) from error


def _at_fault(error: Exception, sentence: str) -> UserError:
    """The sentence: `Unavailable` where another process or a device is away, which may come back."""
    away = re.search(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED)\b", str(error))
    return (Unavailable if away else UserError)(sentence)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
