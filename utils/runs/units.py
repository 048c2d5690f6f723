"""Numbers for people."""


def si(value: float, unit: str = "") -> str:
    """Three digits and a decimal prefix: 398136320 -> "398 M", (45600, "B") -> "45.6 kB"."""
    for power, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * power:  # 999,700 reads 1.00 M, not 1000 k
            scaled = value / power
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f} {prefix}{unit}"
    return f"{value:g} {unit}".strip()


def duration(seconds: float) -> str:
    """ "4.9 s", "12 min", "3.2 h", "3 days"."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} days"
