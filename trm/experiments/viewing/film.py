"""A solved puzzle without a browser: pictures in the terminal, or a GIF."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from plan_envs.rendering import render_ansi, render_rgb
from trm.experiments.play_cli import read_key, single_keys
from trm.experiments.trained.model import Solution
from trm.experiments.viewing.edits import edit_name

_CLEAR = "\x1b[H\x1b[2J"
_KEYS = "right or space: next   left: back   q: leave"
_FRAME_MS, _LAST_MS = 250, 2500


def frames_of(solution: Solution, *, color: bool) -> Iterator[str]:
    """Each plan as text, with what led to it below."""
    last, spec = len(solution.plans) - 1, solution.domain.spec
    for place, plan in enumerate(solution.plans):
        board = render_ansi(solution.domain, solution.instance, plan, color=color)
        line = f"{place} of {last}"
        if place and solution.edits is not None:
            line += f": {edit_name(spec, solution.edits[place - 1])}"
        yield f"{board}\n{line}"


def show(solution: Solution, *, color: bool) -> None:
    """Step through the plans with keys; where input or output is no terminal, print them all."""
    frames = list(frames_of(solution, color=color))
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        click.echo("\n\n".join(frames), color=color)
        return
    at, fd = 0, sys.stdin.fileno()
    with single_keys(fd):
        while True:
            click.echo(f"{_CLEAR}{frames[at]}\n\n{_KEYS}", color=True)
            key = read_key(fd)
            if key in (None, "q", "escape"):
                return
            if key in ("right", " ", "enter"):
                at = min(at + 1, len(frames) - 1)
            elif key == "left":
                at = max(at - 1, 0)


def save_gif(solution: Solution, path: Path, *, size: int = 360) -> None:
    """Write the plans as a GIF that repeats; the last one stays for a while.

    Args:
        solution: what to show.
        path: the file.
        size: pixels of each side.

    Raises:
        ImportError: pygame or Pillow is not installed; the message names the extra.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "a GIF needs Pillow, which is not installed: pip install upi-trm[render]"
        ) from error
    pictures = [
        Image.fromarray(render_rgb(solution.domain, solution.instance, plan, size=size))
        for plan in solution.plans
    ]
    # One palette for all, of the picture with the most colours, so that nothing flickers.
    richest = max(pictures, key=lambda one: len(np.unique(np.asarray(one).reshape(-1, 3), axis=0)))
    palette = richest.quantize(64)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    frames[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=[_FRAME_MS] * (len(frames) - 1) + [_LAST_MS],
        loop=0,
    )
