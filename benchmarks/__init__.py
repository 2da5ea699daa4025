"""Benchmarks: ratios within one process, printed as Markdown. Run with ``make bench``."""
