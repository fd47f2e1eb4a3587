"""What a training measured as it went: a CSV to read, and curves to look at (`omni train plot RUN`).

    metrics = Metrics(run / "metrics.csv", from_step=steps)     # a resumed run drops the rows it will write again
    metrics.row(120, {"loss": 1.25, "rate": 1e-3})

Columns may differ from row to row; what was not measured is empty.
"""

import argparse
import csv
import io
import sys
from collections.abc import Mapping
from pathlib import Path

from omni.train import plots
from omni.train.keep import text


class Metrics:
    def __init__(self, path: Path, from_step: int = 0) -> None:
        self.path = path
        self.rows = [row for row in read(path) if row["step"] <= from_step] if path.exists() else []
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row)) or ["step"]
        self._write()

    def row(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": float(step)} | {name: float(value) for name, value in values.items()}
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        if new:
            self.columns += new
            self._write()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(_short(row))

    def _write(self) -> None:
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, self.columns)
        writer.writeheader()
        writer.writerows(map(_short, self.rows))
        text(self.path, out.getvalue())


def _short(row: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{value:.7g}" for name, value in row.items()}


def read(path: Path) -> list[dict[str, float]]:
    """Rows in order; a last line that a kill cut short is left out."""
    whole, _, _ = path.read_text().rpartition("\n")
    rows = csv.DictReader(io.StringIO(whole))
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a run; every *metrics.csv below it is drawn beside it")


def main(args: argparse.Namespace) -> int:
    found = sorted(args.run.rglob("*metrics.csv"))
    if not found:
        print(f"omni train plot: {args.run} holds no metrics.csv; the trainers write one.", file=sys.stderr)
        return 2
    for path in found:
        rows = read(path)
        names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "step"]
        series = {
            name: ([row["step"] for row in rows if name in row], [row[name] for row in rows if name in row])
            for name in names
        }
        if series:
            plots.curves(path.with_suffix(".png"), str(path.relative_to(args.run).parent), series)
            print(path.with_suffix(".png"))
    return 0
