"""Measurements to be run again on your machine: `omni bench turn|vocoder`. RESULTS.md has ours."""
