"""The contestants: each is a program of its own, run as `python -m benchmarks.workers.NAME`."""
