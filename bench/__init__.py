"""Measurements to be run again on your machine: `omni bench turn|engine|load|growth|vocoder`. RESULTS.md has ours."""
