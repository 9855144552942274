"""What the product's figures come from: `python -m benchmarks.NAME [--quick] [--json FILE]`; see README.md here."""
