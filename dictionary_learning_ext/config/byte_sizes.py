"""Sizes in bytes, as people read them."""

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")


def in_words(number: float) -> str:
    """Bytes, as 41 TB."""
    power = 0
    while number >= 1000 and power < len(_UNITS) - 1:
        number /= 1000
        power += 1
    return f"{number:.{0 if number >= 10 or power == 0 else 1}f} {_UNITS[power]}"
