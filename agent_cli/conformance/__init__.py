"""`abide conformance`: does a runtime keep the interface that others rely on? Seen from outside, over HTTP alone."""
