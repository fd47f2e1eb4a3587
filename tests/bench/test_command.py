"""`omni bench`: a benchmark a module, imported when it is asked for."""

import pytest

from bench.command import BENCHMARKS
from omni import cli


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_help(benchmark: str, capsys):
    """`omni bench NAME --help` explains itself; the module comes in only then."""
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", benchmark, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: omni bench {benchmark}")
