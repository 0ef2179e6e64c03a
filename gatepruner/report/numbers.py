"""How reports write numbers: one rounding for each kind of quantity."""

from __future__ import annotations


def percent(fraction: float) -> str:
    """An accuracy or agreement: `96.55 %`."""
    return f"{100 * fraction:.2f} %"


def span(low: float, high: float) -> str:
    """The ends of an interval of accuracies, in percent: `95.66 to 97.26`."""
    return f"{100 * low:.2f} to {100 * high:.2f}"


def kept(part: float, whole: float) -> str:
    """What is left of parameters or MACs: `82.7%`."""
    return f"{part / whole:.1%}" if whole else ""


def milliseconds(seconds: float) -> str:
    """A latency: `15.12 ms`."""
    return f"{1e3 * seconds:.2f} ms"


def gate_text(gate: float) -> str:
    """A gate: `0.2643`."""
    return f"{gate:.4f}"
