"""Pictures of results, as PNG. matplotlib comes in here, when it is asked for."""

from pathlib import Path
from typing import Any

MISSING = "--plot needs matplotlib: pip install 'omni[bench]' or pip install matplotlib."


def load(found: dict[str, Any], path: Path) -> None:
    """Delays of every turn over time; with several loads, quantiles over sessions."""
    figure, axes = _figure(1)
    axis, loads = axes[0], sorted(found["loads"], key=lambda each: each["sessions"] or 0)
    if len(loads) == 1:
        turns = [each for each in loads[0]["each"] if each["first_audio"] is not None]
        axis.plot([each["asked"] for each in turns], [1000 * each["first_audio"] for each in turns], "o", alpha=0.5)
        for name, value in loads[0]["first_audio"].items():
            if value is not None:
                axis.axhline(1000 * value, linewidth=0.8, label=f"{name}: {1000 * value:.0f} ms")
        axis.set_xlabel("seconds since the start, at the question's end")
    else:
        for name in ("p50", "p95", "p99"):
            points = [(each["sessions"], each["first_audio"][name]) for each in loads if each["first_audio"][name]]
            axis.plot([at for at, _ in points], [1000 * value for _, value in points], "o-", label=name)
        axis.set_xlabel("live sessions")
    axis.axhline(1000 * found["objective"], color="grey", linestyle="--", label="objective, for p95")
    axis.set_ylabel("first audio, ms")
    axis.set_ylim(bottom=0)
    axis.legend()
    _save(figure, path)


def growth(found: dict[str, Any], path: Path) -> None:
    """Cost by answer, by conversation and by sessions, side by side."""
    figure, (answer, history, sessions) = _figure(3)
    ours = found["answer"]["ours"][1:]
    naive = [each for each in found["answer"]["naive"] if each["units"] is not None]
    answer.plot([each["token"] for each in ours], [1000 * each["seconds"] for each in ours], label="omni")
    costs = [1000 * (each["seconds"] + each["units"]) for each in naive]
    answer.plot([each["token"] for each in naive], costs, "o-", label="published path")
    answer.set(xlabel="token of the answer", ylabel="ms a token")
    lengths = [each["positions"] for each in found["history"]]
    for who, label in (("kept", "omni"), ("forgotten", "omni, turns forgotten"), ("naive", "published path")):
        history.plot(lengths, [1000 * each[who]["seconds"] for each in found["history"]], "o-", label=label)
    history.set(xlabel="positions of the conversation", ylabel="ms to the first token")
    at = [each["sessions"] for each in found["sessions"]]
    sessions.plot(at, [1000 * each["seconds"] for each in found["sessions"]], "o-", label="omni")
    sessions.plot(at, [1000 * each["naive_seconds"] for each in found["sessions"]], "o-", label="published path")
    sessions.set(xlabel="sessions", ylabel="ms for a token of each")
    for axis in (answer, history, sessions):
        axis.set_ylim(bottom=0)
        axis.legend()
    _save(figure, path)


def _figure(columns: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7 * columns, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, format="png", dpi=120)
    print(f"drawn: {path}")
