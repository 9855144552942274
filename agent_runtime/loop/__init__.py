"""The turn engine: a pure machine, the driver that performs its effects, and the engine that owns turns."""
