"""Seeds that depend on what is drawn, never on what was drawn before."""

import hashlib
import json


def mix(*parts: int | float | str) -> int:
    """One 63-bit seed out of any parts: `mix(seed, epoch, step)`.

    Equal parts give equal seeds on every machine and version; other parts, or the same in another
    order, give unrelated ones (SHA-256), which neither seed + epoch nor Python's salted hash does.
    Numbers and strings differ: mix(1) != mix("1").
    """
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    # torch.Generator takes signed 64-bit seeds, hence 63 bits.
    return int.from_bytes(digest[:8], "big") >> 1
