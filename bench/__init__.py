"""Measurements to be run again on your machine: `omni bench --help` names them. RESULTS.md has ours."""
