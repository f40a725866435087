"""Confidence intervals for shares. Pure."""

from math import sqrt

Z_ONE_SIDED_95 = 1.6449
Z_TWO_SIDED_95 = 1.959964


def wilson(share: float, n: int, z: float = Z_ONE_SIDED_95) -> tuple[float, float]:
    """Wilson's score interval for a proportion of `n` trials, [0, 1] of none.

        (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if n == 0:
        return 0.0, 1.0
    centre = share + z * z / (2 * n)
    spread = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n))
