"""Benchmarks of rnnkernels; run `python -m benchmarks --help` from the repository root."""
