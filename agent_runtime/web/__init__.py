"""The HTTP edge: the only importer of the web framework. Requests in, plain values to the engine, documents out."""
