"""Threads for compiled kernels: made once, asleep between calls, without the interpreter's lock.

torch's own threads cannot be given foreign work, and numba's are not safe to use from two Python threads. These are plain POSIX threads in
compiled code. A kernel is a C function `void(thread, arguments)` that every thread calls with its number; `arguments` is the address of
int64 numbers of which the first two are the number of threads and the address of a barrier's counter (`wait_for_all`).
"""

import ctypes
import functools
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import cfunc, njit, types

from avl.kernels.native.memory import PATIENCE, add_atomically, call, load_atomically, sched_yield, sem_post, sem_wait, view

_WORDS = 16  # per thread: job, arguments, number, jobs done, of them before this one, jobs given; from 8 on a semaphore of 32 bytes
_SEMAPHORE = 8
WAKEFUL = 100_000
"""Looks at its counter, some tenths of a millisecond, that a thread takes between two jobs before it sleeps."""


def _compile(digest: str) -> tuple[Any, Any]:
    """Return what a thread does and what the one that leads them does; `digest` as for :func:`kernels`."""

    @cfunc(types.voidptr(types.intp), cache=True)
    def work(own):
        digest  # noqa: B018
        state = view(own, _WORDS, np.int64(0))
        done = np.int64(0)
        while True:
            spins = 0
            while load_atomically(own + 40) == done and spins < WAKEFUL:  # the next step may follow at once, and waking takes longer
                spins += 1
            sem_wait(own + 8 * _SEMAPHORE)
            call(state[0], state[2], state[1])
            done += 1
            add_atomically(own + 24, 1)

    @njit(nogil=True, cache=True)
    def lead(job, arguments, states, threads):
        digest  # noqa: B018
        address = arguments.ctypes.data
        for thread in range(1, threads):
            own = states + 8 * _WORDS * thread
            state = view(own, _WORDS, np.int64(0))
            state[0], state[1], state[4] = job, address, load_atomically(own + 24)
            add_atomically(own + 40, 1)
            sem_post(own + 8 * _SEMAPHORE)
        call(job, 0, address)
        for thread in range(1, threads):
            own, spins = states + 8 * _WORDS * thread, 0
            before = view(own, _WORDS, np.int64(0))[4]
            while load_atomically(own + 24) == before:
                spins += 1
                if spins > PATIENCE:
                    sched_yield()

    return work, lead


def kernels(make: Callable[[str], dict[torch.dtype, Callable[[int, int], None]]]) -> Callable[[torch.dtype], int]:
    """Return a function that gives the address of a kernel for a dtype, compiled at its first use.

    Compiled once per machine: numba keeps the result beside the kernel's file, or in the user's cache.

    Args:
        make: makes the kernels `(thread, arguments)` by dtype from the digest of all kernels' sources. They must refer to that digest,
            which then is part of the key under which numba keeps them: it looks at a kernel's own file only, not at what it imports.
    """

    @functools.cache
    def entry(dtype: torch.dtype) -> int:
        address: int = cfunc(types.void(types.intp, types.intp), cache=True)(make(_digest())[dtype]).address
        return address

    return entry


@functools.cache
def _digest() -> str:
    """Return a digest of the sources of all kernels of numba."""
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), *here.parent.glob("*/numba.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class _Team:
    """The threads of this process."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.busy = threading.Lock()
        self._most = max(64, os.cpu_count() or 1)
        self._states = np.zeros(_WORDS * self._most, dtype=np.int64)
        self._counter = np.zeros(1, dtype=np.int64)
        self._alone = np.zeros(1, dtype=np.int64)
        self._made = 1
        self._work, self._lead = _compile(_digest())
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._state_address, self._counter_address, self._alone_address = (
            array.ctypes.data for array in (self._states, self._counter, self._alone)
        )

    def _grow(self, threads: int) -> int:
        """Have so many threads, or as many as the system gives; return their number."""
        while self._made < min(threads, self._most):
            own = self._state_address + 8 * _WORDS * self._made
            self._states[_WORDS * self._made + 2] = self._made
            handle = ctypes.c_ulong()
            if self._libc.sem_init(ctypes.c_void_p(own + 8 * _SEMAPHORE), 0, 0) != 0:
                break
            if self._libc.pthread_create(ctypes.byref(handle), None, ctypes.c_void_p(self._work.address), ctypes.c_void_p(own)) != 0:
                break
            self._made += 1
        return min(threads, self._made)

    def run(self, job: int, arguments: np.ndarray, threads: int) -> None:
        if threads > 1 and self.busy.acquire(blocking=False):
            try:
                self._counter[0] = 0
                arguments[0], arguments[1] = self._grow(threads), self._counter_address
                self._lead(job, arguments, self._state_address, arguments[0])
            finally:
                self.busy.release()
        else:  # the others serve another Python thread
            arguments[0], arguments[1] = 1, self._alone_address
            self._lead(job, arguments, 0, 1)


_team: _Team | None = None


def run(job: int, arguments: np.ndarray, threads: int) -> None:
    """Run a kernel and wait for it.

    Args:
        job: address of a C function `void(int64, int64)`.
        arguments: int64; the first two are filled in here.
        threads: how many run it, this one included; where another Python thread runs a kernel, only this one.
    """
    global _team
    if _team is None or _team.process != os.getpid():
        _team = _Team()  # threads do not survive a fork
    _team.run(job, arguments, threads)
