"""This package beside the programs that a reader would pick instead: `python -m benchmarks.run`, docs/BENCHMARKS.md."""
