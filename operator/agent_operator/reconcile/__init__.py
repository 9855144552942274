"""The core: observe → plan → apply → report, and what keeps it going (cache, queue, sweeps)."""
