"""Work without a cluster: `abide dev` and `abide migrate`."""
