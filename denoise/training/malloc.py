"""The C library's allocator, told to keep what a training step frees for the next one."""

import ctypes

# Of glibc's malloc.h: parameters of mallopt.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
SETTINGS = {
    MMAP_THRESHOLD: 32 << 20,  # the largest that glibc takes: activations come from the heap, not from the system
    TRIM_THRESHOLD: 2**31 - 1,  # and stay there when they are freed
    TOP_PAD: 256 << 20,
}


def keep_freed_memory() -> bool:
    """Let memory that is freed stay with this process, and say whether the C library can do so (glibc).

    Every step allocates and frees the same large tensors. By default they go back to the system, which hands them out
    again page by page and zeroed, which costs a step on a CPU some 7 %. The price is that a process never shrinks.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, Windows, musl
        return False
    taken = [mallopt(parameter, value) for parameter, value in SETTINGS.items()]
    return all(taken)
