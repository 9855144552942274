"""Named statements in SQL files."""

import re
from pathlib import Path

import pytest

import agent_store
from agent_store.postgres.queries import load_queries, parse_queries

CODE = "\n".join(path.read_text() for path in (Path(agent_store.__file__).parent / "postgres").glob("*.py"))


def test_statements_are_found_by_name_without_comments() -> None:
    parsed = parse_queries("-- why\n-- name: one\nSELECT 1\n\n-- about two\n-- name: two\nSELECT\n    2\n")
    assert parsed == {"one": "SELECT 1", "two": "SELECT\n    2"}


def test_a_name_may_come_only_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        parse_queries("-- name: one\nSELECT 1\n-- name: one\nSELECT 2")


def test_every_statement_is_used_and_every_used_one_exists() -> None:
    used = set(re.findall(r"(?:_db\.run\(\s*|_statement=)\"(\w+)\"", CODE))
    assert used == set(load_queries())


def test_every_table_is_named_with_its_schema() -> None:
    source = re.compile(r"\b(?:FROM|JOIN|INTO|UPDATE)\s+(?!SET\b|OF\b|[a-z_]+\()([a-z_.]+)")
    for name, statement in load_queries().items():
        tables = source.findall(statement)
        ctes = set(re.findall(r"(\w+) AS (?:MATERIALIZED )?\(\n", statement))
        assert [table for table in tables if "." not in table and table not in ctes] == [], name
