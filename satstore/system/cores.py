"""How many cores this process may use."""


def count_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and its container's quota."""
    from joblib import cpu_count  # 0.1 s

    return int(cpu_count())
