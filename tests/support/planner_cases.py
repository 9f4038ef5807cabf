"""Cases that several test modules share."""

from torch import Tensor

from trm.nn.stablemax import stablemax_probabilities


def literal_js(first: Tensor, second: Tensor, mask: Tensor) -> float:
    """Eq. 12, position by position."""
    found = []
    for i in range(len(mask)):
        if mask[i]:
            p, q = stablemax_probabilities(first[i]), stablemax_probabilities(second[i])
            s = (p + q) / 2
            found.append(float((p * (p / s).log()).sum() + (q * (q / s).log()).sum()) / 2)
    return sum(found) / len(found) if found else 0.0
