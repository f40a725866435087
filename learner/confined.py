"""A program of its own, started by `sandbox` for one reply: locks itself in, then runs what the model wrote.

Behind the lock the kernel (seccomp) refuses every call but those for memory, time and the streams that are
open: no file, no socket, no process, no signal to another one. CPU time, memory and output are limited. Reads
one line of JSON from standard input, writes READY when locked, then the values. Never run in the learner.
"""

import ctypes
import io
import json
import os
import platform
import resource
import struct
import sys
from types import ModuleType

READY = "locked\n"
PRELOADED = (
    "abc bisect collections copy dataclasses datetime decimal enum fractions functools heapq itertools math "
    "operator random re statistics string typing"
)
"""What a program can import: behind the lock no file can be read any more."""

# read, write, close, fstat, mmap, mprotect, munmap, brk, mremap, madvise, rt_sigprocmask, rt_sigreturn,
# sigaltstack, sched_yield, getpid, exit, exit_group, gettimeofday, getrusage, futex, clock_gettime,
# clock_getres, getrandom, restart_syscall
ALLOWED = {
    "x86_64": (0xC000003E, "0 1 3 5 9 10 11 12 25 28 14 15 131 24 39 60 231 96 98 202 228 229 318 219"),
    "aarch64": (
        0xC00000B7,
        "63 64 57 80 222 226 215 214 216 233 135 139 132 124 172 93 94 169 165 98 113 114 278 128",
    ),
}
"""By machine: its AUDIT_ARCH, and the numbers of the system calls above."""
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
KILL, ALLOW, REFUSE = 0x80000000, 0x7FFF0000, 0x00050000 | 1
"""Seccomp's answers; a refused call fails with EPERM."""
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2


def main() -> None:
    asked = json.loads(sys.stdin.readline())
    for name in PRELOADED.split():
        __import__(name)
    sys.modules["random"].seed(0)
    limit(asked["cpu_s"], asked["memory_bytes"], asked["output_bytes"])
    lock()
    os.write(1, READY.encode())
    sys.stdout = sys.stderr = io.StringIO()
    os.write(1, values(asked["program"], asked["calls"]).encode())
    os._exit(0)


def limit(cpu_s: int, memory_bytes: int, output_bytes: int) -> None:
    """Past its CPU time the process ends by SIGXCPU, which nothing behind the lock can catch."""
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output_bytes, output_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def lock() -> None:
    """Raises: OSError where the kernel does not offer it."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ALLOWED:
        raise OSError(f"no lock for {sys.platform} on {machine}: Linux on x86_64 or aarch64 has one")
    program = filter_of(*ALLOWED[machine])
    code = ctypes.create_string_buffer(program, len(program))
    class_ = struct.pack("HL", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((NO_NEW_PRIVILEGES, 1, 0, 0, 0), (SET_SECCOMP, FILTER, class_, 0, 0)):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), f"the kernel offers no seccomp filter (prctl {call[0]})")


def filter_of(architecture: int, numbers: str) -> bytes:
    """The lock as a seccomp program: of this architecture, these calls are allowed and all others refused."""
    calls = [int(number) for number in numbers.split()]
    lines = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    lines += [(EQUAL, len(calls) - i, 0, number) for i, number in enumerate(calls)]
    lines += [(RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def values(program: str, calls: list[str]) -> str:
    """A list of the calls' values as JSON, or `null` where the program or one of them failed."""
    module = sys.modules["reply"] = ModuleType("reply")  # dataclasses look their module up
    space, encode = vars(module), json.dumps
    try:
        exec(compile(program, "<reply>", "exec"), space)
        return encode([eval(call, space) for call in calls], allow_nan=False)
    except BaseException:  # whatever it did, it is the program's doing
        return "null"


if __name__ == "__main__":
    main()
