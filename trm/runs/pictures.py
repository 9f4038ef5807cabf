"""Pictures by matplotlib, which the extra `plot` brings; made without a display."""

import importlib
from pathlib import Path
from typing import Any


def new_figure(width: float, height: float) -> Any:
    """An empty `matplotlib.figure.Figure`, sides in inches.

    Raises:
        ValueError: matplotlib is not installed.
    """
    require_matplotlib()
    figures: Any = importlib.import_module("matplotlib.figure")
    return figures.Figure(figsize=(width, height), layout="constrained")


def require_matplotlib() -> None:
    """Say that it is missing, before something is measured for minutes.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install 'upi-trm[plot]'") from None


def save_figure(figure: Any, path: Path) -> None:
    """Write the picture; the ending of `path` names the format, e.g. .png, .svg or .pdf.

    Raises:
        ValueError: matplotlib does not know the format.
    """
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise ValueError(f"--plot: {path}: {' '.join(str(error).split())}") from error
