"""The shared words of Abide: resources, conditions, labels and wire models.

Imports the standard library and pydantic only, so that every other package may import it; `parsing` and `crdgen`,
which read and write YAML, import PyYAML as well.
"""
