"""The measurements behind the numbers in README: `python -m benchmarks`, or `make bench`. One file per claim."""
