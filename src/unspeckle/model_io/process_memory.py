"""How the process manages its memory."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory, except for blocks over 32 MiB. By default it gives all large blocks back to the
    system at once, and the page faults of getting them again cost a twentieth of each step's time. For a process that
    does little but draw; elsewhere than on Linux with glibc it does nothing."""
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except AttributeError:  # another C library
            return
        mallopt(_M_MMAP_THRESHOLD, 2**25)  # the highest that it allows
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
