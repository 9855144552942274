"""The shared words of Abide: resources, conditions, labels and wire models.

Imports the standard library and pydantic only, so that every other package may import it.
"""
