"""On the CPU, memory that large tensors leave is used again: fresh pages of the system cost more than some layers.

The C library gives each large block back to the system and asks for it again, and the system clears every page anew.
"""

import ctypes
import platform

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX = 128 * 1024, 65536
_NEVER = -1


def keep_freed_memory(keep: bool = True) -> bool:
    """Lets this process keep what it frees, for the next tensors; it never shrinks then.

    Args:
        keep: False for what the C library does by itself; what is free then goes back to the system.

    Returns:
        Whether the C library could be told; only glibc can.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    trim, blocks = (_NEVER, 0) if keep else (_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX)
    told = library.mallopt(_M_TRIM_THRESHOLD, trim) and library.mallopt(_M_MMAP_MAX, blocks)
    if not keep:
        library.malloc_trim(0)
    return bool(told)
