"""Pictures of results, and a sweep as one. matplotlib is imported when one is drawn, and not before."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nola_codec.api.arguments import require_parent
from nola_codec.api.sweeping import SweepReport
from nola_codec.errors import EncodeError
from nola_codec.remote import accepts_urls
from nola_codec.stores.files import atomic_file, require_free

FORMATS = (".png", ".svg")


def check_plot(out: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse what a plot would be refused for, before the work that it shows is done.

    Raises:
        EncodeError: another ending than FORMATS, or no matplotlib (code ``missing-package``); those of
            `require_parent`.
        OutputExists: `out` is there and `overwrite` is false.
    """
    path = Path(out)
    if path.suffix.lower() not in FORMATS:
        raise EncodeError(f"a plot ends in {' or '.join(FORMATS)}", code="option", where=str(path))
    require_free(path, overwrite=overwrite)
    require_parent(path)
    if importlib.util.find_spec("matplotlib") is None:
        raise EncodeError("plots need matplotlib: pip install 'nola-codec[plot]'", code="missing-package")


@contextmanager
def new_figure(out: str | os.PathLike[str], size: tuple[float, float], *, overwrite: bool) -> Iterator[Any]:
    """Give a figure of matplotlib that is written to a file once it is drawn.

    The same drawing gives the same SVG.

    Args:
        out: The file, which ends in one of FORMATS.
        size: Its width and height in inches.
        overwrite: True replaces a file that is there.

    Raises:
        EncodeError, OutputExists: as `check_plot`.
    """
    check_plot(out, overwrite=overwrite)
    import matplotlib

    matplotlib.use("agg", force=False)
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "nola-codec", "svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        suffix = Path(out).suffix.lower().removeprefix(".")
        with atomic_file(out) as stream:
            figure.savefig(stream, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else None)


@accepts_urls(out="out")
def plot_sweep(report: SweepReport, out: str | os.PathLike[str], *, title: str = "", overwrite: bool = False) -> None:
    """Draw size against error.

    The same report gives the same SVG.

    Raises:
        EncodeError, OutputExists: as `check_plot`.
    """
    effective = report.objective == "effective"
    done = [p for p in report.points if p.bytes is not None]
    with new_figure(out, (8.5, 4.5), overwrite=overwrite) as figure:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes = figure.add_subplot()
        own: list[Any] = [(p.bytes, p.effective_error if effective else p.nmse) for p in done]
        if own:
            own.sort()
            axes.plot([x for x, _ in own], [y for _, y in own], linewidth=2.5, marker="o", color="black")
        axes.set_xscale("log")
        if any(y for _, y in own):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("size of the file")
        axes.set_ylabel("effective error" if effective else "NMSE of delta_W")
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        fp16 = 2 * report.parameters
        above = axes.secondary_xaxis(
            "top", functions=(lambda x: fp16 / _above_zero(x), lambda x: fp16 / _above_zero(x))
        )
        above.set_xlabel("smaller than fp16")
        for axis, label in ((axes.xaxis, _size), (above.xaxis, lambda x, _: f"{x:g}x")):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(label))
            axis.set_minor_formatter(NullFormatter())
        if title:
            axes.set_title(title)


def _size(x: float, _: object) -> str:
    return f"{x / 1e6:g} MB" if x >= 1e6 else f"{x / 1000:g} KB"


def _above_zero(x: Any) -> Any:
    import numpy as np

    return np.maximum(x, 1e-9)  # matplotlib tries limits that no file has
