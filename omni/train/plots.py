"""Numbers → pictures: what an evaluation found, how a training went.

    fitting(folder / "fitting.png", {"mini": result})
    latency(folder / "latency.png", {"mini": rows})

Draws into files, on no screen.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

PAPER_MS = {10: 236.18, 20: 281.41, 40: 346.73, 60: 412.06, 80: 487.44, 100: 562.81, "offline": 1753.77}  # 8B on an L40


class PlotsMissing(RuntimeError):
    """matplotlib is not installed."""


def require() -> None:
    """Raises PlotsMissing now rather than after the work."""
    _pyplot()


def fitting(path: Path, results: Mapping[str, dict]) -> None:
    """Shares of fitting answers, by voice and in writing and by kind; bars of each checkpoint side by side."""
    names = ["fitting", "fitting_heard", "fitting_text"]
    labels = ["by voice", "as heard", "in writing"]
    kinds = sorted({kind for result in results.values() for kind in result["fitting_by_kind"]})
    figure, axes = _axes("Fitting answers", "share")
    for i, (model, result) in enumerate(results.items()):
        values = [result[name] or 0 for name in names] + [result["fitting_by_kind"].get(kind) or 0 for kind in kinds]
        places = [place + (i - (len(results) - 1) / 2) * 0.8 / len(results) for place in range(len(values))]
        axes.bar_label(axes.bar(places, values, 0.8 / len(results), label=model), fmt="{:.0%}", fontsize=8)
    axes.set_xticks(range(len(labels) + len(kinds)), [*labels, *kinds])
    axes.set_ylim(0, 1.05)
    _finish(figure, axes, path, legend=len(results) > 1)


def latency(path: Path, rows: Mapping[str, Sequence[dict]]) -> None:
    """Milliseconds to the first sound by Ω: the LLM's part and the vocoder's on top of it."""
    figure, axes = _axes("First sound by Ω", "ms")
    for i, (model, measured) in enumerate(rows.items()):
        places = [place + (i - (len(rows) - 1) / 2) * 0.8 / len(rows) for place in range(len(measured))]
        llm, vocoder = ([row[key] for row in measured] for key in ("llm_ms", "vocoder_ms"))
        axes.bar(places, llm, 0.8 / len(rows), label=f"{model}: LLM", color=f"C{i}")
        axes.bar(places, vocoder, 0.8 / len(rows), bottom=llm, label=f"{model}: vocoder", color=f"C{i}", alpha=0.5)
    omegas = [row["omega"] for row in next(iter(rows.values()))]
    paper = [PAPER_MS.get(omega) for omega in omegas]
    axes.plot(range(len(omegas)), paper, "k.--", linewidth=0.8, label="paper: 8B on an L40")
    axes.set_xticks(range(len(omegas)), [str(omega) for omega in omegas])
    axes.set_xlabel("Ω, units in a chunk")
    _finish(figure, axes, path, legend=True)


def curves(path: Path, title: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """name: (steps, values) → one small picture for each name, below one another."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(len(series), figsize=(7, 2.2 * len(series)), squeeze=False, sharex=True)
    for axis, (name, (steps, values)) in zip(axes[:, 0], series.items(), strict=True):
        axis.plot(steps, values, marker="." if len(steps) < 60 else None, linewidth=1)
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[0, 0].set_title(title)
    axes[-1, 0].set_xlabel("step")
    _save(figure, path)


def _axes(title: str, unit: str):
    figure, axes = _pyplot().subplots(figsize=(7, 4))
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.grid(axis="y", alpha=0.3)
    return figure, axes


def _finish(figure, axes, path: Path, legend: bool) -> None:
    if legend:
        axes.legend(fontsize=8)
    _save(figure, path)


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=120, bbox_inches="tight")
    finally:
        _pyplot().close(figure)


def _pyplot():
    try:
        import matplotlib
    except ImportError as exc:
        raise PlotsMissing("Plots need matplotlib: pip install 'omni[train]'.") from exc
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
