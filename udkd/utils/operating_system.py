"""The operating system: what Linux has and macOS lacks, with a replacement. mypy checks all other code as for macOS."""

import ctypes
import errno
import os
import platform
import signal
from pathlib import Path

_LOCAL_FILE_SYSTEMS = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}
_PR_SET_PDEATHSIG = 1


def available_cores() -> int:
    """The number of cores that this process may run on; where the system cannot limit that, all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reserve_space(descriptor: int, num_bytes: int) -> None:
    """Make an open file at least `num_bytes` long, with space on the disk for all of them.

    Raises OSError if there is not enough. Without posix_fallocate the free space is compared and not taken.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
        return
    size, disk = os.fstat(descriptor).st_size, os.fstatvfs(descriptor)
    if num_bytes - size > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if num_bytes > size:
        os.ftruncate(descriptor, num_bytes)


def die_with_parent(number: signal.Signals) -> None:
    """Ask the kernel to send this process a signal when its parent dies. Replaces an earlier request.

    Only Linux does this; elsewhere the process keeps running.
    """
    parent = os.getppid()
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    except AttributeError:
        return
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def is_local_file_system(path: Path) -> bool:
    """Whether a path's file system is known to be of this host alone, by Linux's list of mounts."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    # Fields: see proc_pid_mountinfo(5). Btrfs gives files another number than the mount; it is not found then.
    kinds = {line.partition(" - ")[2].split()[0] for line in lines if line.split()[2] == number}
    return bool(kinds) and kinds <= _LOCAL_FILE_SYSTEMS


def processor_name() -> str:
    """The CPU's name, from Linux's kernel; else at least its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
