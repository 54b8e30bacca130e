"""A function of one of our modules, run in a child process that can neither reach the network nor grow without bound.

`call` is the parent's side; `serve` is what the child's module runs as its main program. Both ends speak JSON, in files
of one private folder that is gone afterwards; tensors pass through the same folder as safetensors. The child sees an
environment of its own, without the parent's secrets.

What holds where, on top of one another:
- Linux: no new privileges; where the kernel lets an ordinary user have them, name spaces of its own, whose network is
  empty; a seccomp filter (x86-64 and ARM64) that refuses sockets, io_uring and the start of other programs, to native
  code as well. Without either of the last two the child refuses to work.
- Everywhere: an audit hook that refuses Python's sockets, its child processes, and writing outside the folder; limits
  on written memory (Linux), processor time, file size and wall-clock time; threads as told.
Reading files that the user may read is not prevented.
"""

import ctypes
import json
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REQUEST = "request.json"
ANSWER = "answer.json"

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
_REFUSED_CALLS: Mapping[str, tuple[int, tuple[int, ...]]] = {
    "x86_64": (0xC000003E, (41, 53, 59, 322, 425)),
    "aarch64": (0xC00000B7, (198, 199, 221, 281, 425)),
}
"""By machine: its audit number, and socket, socketpair, execve, execveat, io_uring_setup. Source: linux/audit.h."""

_REFUSED_EVENTS = ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "pty.")
"""Beginnings of the audit events that no work here needs."""

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
_MOST_SHOWN = 500


@dataclass(frozen=True)
class Limits:
    """What a child may take. memory_bytes: private writable memory, which mapped files do not add to.

    seconds: of the clock, and of the processor for each thread. file_bytes: the longest file it may write.
    """

    memory_bytes: int
    seconds: int
    threads: int = 1
    file_bytes: int = 1 << 40


class ChildFailed(Exception):
    """The child gave no result. kind: the class of its error, "" where it ended without a word."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


# ---- parent ----------------------------------------------------------------------------------------------------------


def call(module: str, request: Mapping[str, Any], folder: Path, limits: Limits) -> Any:
    """What the child `python -m module` makes of the request, in `folder`, which is its own. Raises ChildFailed.

    The child ends with this call, whatever happens. What it wrote beside its answer stays in the folder.
    """
    (folder / REQUEST).write_text(json.dumps({"limits": asdict(limits), "request": request}))
    command = [sys.executable, "-P", "-s", "-m", module]
    try:
        with (folder / "stderr").open("wb") as errors:
            ended = subprocess.run(  # our own interpreter and module
                command,
                cwd=folder,
                env=_environment(folder, limits),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                timeout=limits.seconds,
                check=False,
                close_fds=True,
            )
    except subprocess.TimeoutExpired:
        raise ChildFailed("TimeoutError", f"took more than the {limits.seconds} seconds it may take") from None
    answer = folder / ANSWER
    if not answer.exists():
        last = (folder / "stderr").read_bytes()[-_MOST_SHOWN:].decode(errors="replace").strip().rpartition("\n")[2]
        raise ChildFailed("", f"ended with status {ended.returncode} and no answer; last words: {last or 'none'}")
    said = json.loads(answer.read_text())
    if "error" in said:
        raise ChildFailed(str(said["error"]["kind"]), str(said["error"]["message"]))
    return said["result"]


def _environment(folder: Path, limits: Limits) -> dict[str, str]:
    """Where our modules are, no network for the libraries, and nothing else."""
    threads = str(limits.threads)
    return {
        "PYTHONPATH": os.pathsep.join(one for one in sys.path if one),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder),
        "HF_HOME": str(folder),
        "TMPDIR": str(folder),
        "PATH": os.defpath,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "LOKY_MAX_CPU_COUNT": threads,
        **dict.fromkeys(_OFFLINE, "1"),
    }


# ---- child -----------------------------------------------------------------------------------------------------------


def serve(work: Callable[[Mapping[str, Any], Path], Any]) -> None:
    """The main program of a child: confine it, do the work in the current folder, and leave the answer there.

    work: `(request, folder)` gives a JSON value. Any error of it becomes the answer, with its class and a short text.
    """
    folder = Path.cwd()
    said = json.loads((folder / REQUEST).read_text())
    try:
        confine(Limits(**said["limits"]), folder)
        answer = {"result": work(said["request"], folder)}
    except Exception as error:  # noqa: BLE001  # the edge of this process: the parent raises it again
        text = " ".join(str(error).split()) or "no text"
        answer = {"error": {"kind": type(error).__name__, "message": text[:_MOST_SHOWN]}}
    (folder / ANSWER).write_text(json.dumps(answer))


def confine(limits: Limits, folder: Path) -> list[str]:
    """Give up, for good, what the work does not need; gives the names of what took hold. Before any thread starts.

    Raises PermissionError on a Linux where neither an empty network nor a filter of system calls can be had.
    """
    held = ["limits"] if _limit(limits) else []
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)  # no child outlives the work it is for
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
            held.append("namespaces")
        if _filter_calls(libc):
            held.append("seccomp")
        if len(held) < 2:
            raise PermissionError("this system offers neither user name spaces nor seccomp to confine a child with")
    _watch(folder)
    return [*held, "audit"]


def _limit(limits: Limits) -> bool:
    try:
        import resource
    except ImportError:  # Windows
        return False
    wanted = {
        resource.RLIMIT_CPU: limits.seconds * max(1, limits.threads),
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":  # elsewhere kernels do not count mappings there
        wanted[resource.RLIMIT_DATA] = limits.memory_bytes
    for name, value in wanted.items():
        _, hard = resource.getrlimit(name)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (most, most))
    return True


def _filter_calls(libc: Any) -> bool:
    """A seccomp program: another machine's calls end the process, refused ones give EPERM, all others pass."""
    machine = _REFUSED_CALLS.get(platform.machine())
    if machine is None:
        return False
    audit, numbers = machine
    count = len(numbers)
    load_machine, load_call = (0x20, 0, 0, 4), (0x20, 0, 0, 0)
    program = [load_machine, (0x15, 1, 0, audit), (0x06, 0, 0, 0x80000000), load_call]
    program += [(0x15, count - position, 0, number) for position, number in enumerate(numbers)]
    program += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | 1)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    whole = Program(len(program), ctypes.cast(code, ctypes.c_void_p))
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(whole), 0, 0) == 0)


def _watch(folder: Path) -> None:
    inside = str(folder.resolve()) + os.sep

    def refuse(event: str, details: tuple[Any, ...]) -> None:
        if event.startswith(_REFUSED_EVENTS):
            raise PermissionError(f"{event}: not allowed in a confined process")
        if event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR):
            name = os.fsdecode(details[0]) if isinstance(details[0], str | bytes) else ""
            if name and name != os.devnull and not os.path.realpath(name).startswith(inside):
                raise PermissionError(f"{name}: not allowed to be written by a confined process")

    sys.addaudithook(refuse)
