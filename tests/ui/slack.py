"""How much longer things may take on a machine that others use: limits of time hold as they stand where it is quiet."""

from __future__ import annotations

import os


def slack() -> float:
    """Return a factor, 1 on a machine that does nothing else. The load is a mean over a minute, and lags behind what a moment has."""
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    return 1.0 if busy < 1.2 else 3 * busy
