"""Makes the C library's allocator keep the memory that a training step frees for the next one."""

import ctypes

# Parameters of mallopt, from glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
SETTINGS = {
    MMAP_THRESHOLD: 32 << 20,  # the largest that glibc takes: activations come from the heap, not from the system
    TRIM_THRESHOLD: 2**31 - 1,  # and stay there when they are freed
    TOP_PAD: 256 << 20,
}


def keep_freed_memory() -> bool:
    """Keep freed memory in this process; return whether the C library can do so (glibc can).

    Every step allocates and frees the same large tensors. By default their memory goes back to the system,
    which hands it out again page by page and zeroed: some 7 % of a step on a CPU. The price is that the process never
    shrinks.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, Windows, musl
        return False
    accepted = [mallopt(parameter, value) for parameter, value in SETTINGS.items()]
    return all(accepted)
