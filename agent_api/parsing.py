"""Text → documents: YAML or JSON, read the way Kubernetes' tools read it, with bounds.

Made for agent_api.manifest; what the documents mean is decided there.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, Final, NoReturn

import yaml

from agent_api.problems import Problem

TEXT_MAX_LENGTH: Final = 3 * 1024 * 1024
"""Longest manifest in characters; the API server takes requests of at most 3 MiB."""

NODES_MAX: Final = 100_000
"""Most values of one document after its aliases are followed, so that a few lines cannot grow into gigabytes."""

DEPTH_MAX: Final = 64

_READ_OTHERWISE: Final = frozenset(("int", "float", "timestamp", "value"))
"""Plain scalars that PyYAML and Kubernetes' tools take for different things."""


class DocumentError(Exception):
    """One document that cannot be used, with every problem found in it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems


def refuse(path: str, message: str) -> NoReturn:
    """Raise DocumentError with one problem."""
    raise DocumentError([Problem(path, message)])


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as Kubernetes' tools read it: dates and base-60 numbers are texts, `1e3` is a number, `y` is true."""

    bool_values: ClassVar[dict[str, bool]] = {**yaml.SafeLoader.bool_values, "y": True, "n": False}

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in _READ_OTHERWISE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^[yYnN]$"), list("yYnN"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]+|0|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9_]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def split_documents(text: str) -> Iterator[tuple[int, Callable[[], Any]]]:
    """Yield the number of each document, from 1, and a function that returns its content or raises DocumentError.

    The content is what JSON could hold, None for an empty document. A text that stops being YAML yields its good
    documents, then one that raises.
    """
    if text.lstrip().startswith("{"):
        try:
            # YAML would read most JSON too, but slowly, and not the escapes of characters beyond 16 bits.
            document = json.loads(text, object_pairs_hook=_unique_pairs)
        except DocumentError as refused:
            yield 1, partial(_raise, refused)
            return
        except (ValueError, RecursionError):
            pass
        else:
            yield 1, partial(_plain, document)
            return
    yield from _split_yaml(text)


def _split_yaml(text: str) -> Iterator[tuple[int, Callable[[], Any]]]:
    number = 1
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        yield number, partial(refuse, "", _describe_yaml_error(error))
        return
    try:
        while True:
            node = loader.get_node() if loader.check_node() else None
            if node is None:
                return
            yield number, partial(_construct, loader, node)
            number += 1
    except yaml.YAMLError as error:
        yield number, partial(refuse, "", _describe_yaml_error(error))
    except RecursionError:
        yield number, partial(refuse, "", f"nested too deeply; at most {DEPTH_MAX} levels are read")
    finally:
        loader.dispose()


def _raise(error: Exception) -> NoReturn:
    raise error


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DocumentError([_duplicate(key) for key in mapping if keys.count(key) > 1])
    return mapping


def _duplicate(key: str) -> Problem:
    return Problem("", f'the key "{key}" stands twice in one mapping; keep one of them')


def _construct(loader: _Loader, node: yaml.Node) -> Any:
    """Return the content of one composed document as JSON would hold it."""
    if problems := list(_check_nodes(node)):
        raise DocumentError(problems)
    try:
        return _plain(loader.construct_document(node))
    except yaml.YAMLError as error:
        refuse("", _describe_yaml_error(error))


def _check_nodes(root: yaml.Node) -> Iterator[Problem]:
    """Yield repeated keys; stop at a document that is too deep or, its aliases followed, too large."""
    count = 0
    reported: set[int] = set()
    waiting = [(root, 1)]
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if depth > DEPTH_MAX:
            yield Problem("", f"nested too deeply; at most {DEPTH_MAX} levels are read")
            return
        if count > NODES_MAX:
            yield Problem("", f"too many values; at most {NODES_MAX} are read, aliases followed")
            return
        if isinstance(node, yaml.SequenceNode):
            waiting += [(item, depth + 1) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            waiting += [(item, depth + 1) for pair in node.value for item in pair]
            if id(node) not in reported:
                reported.add(id(node))
                yield from _repeated_keys(node)


def _repeated_keys(node: yaml.MappingNode) -> Iterator[Problem]:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                yield Problem(f"line {key.start_mark.line + 1}", _duplicate(key.value).message)
            seen.add(key.value)


def _describe_yaml_error(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return f"not YAML: character {error.position + 1} is U+{error.character:04X}, which is not text; remove it"
    mark = getattr(error, "problem_mark", None)
    place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"not YAML{place}: {getattr(error, 'problem', None) or error}"


def _plain(value: Any) -> Any:
    """Return the value as JSON would hold it: texts as keys, no infinite numbers, 5.0 as 5.

    Raises: DocumentError for what JSON cannot hold.
    """
    if isinstance(value, dict):
        return {_plain_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            refuse("", f"{value} is no number that can be used; write a finite one")
        return int(value) if value.is_integer() else value
    if value is None or isinstance(value, str | int):
        return value
    refuse("", f"a YAML {type(value).__name__} cannot be used here; write texts, numbers, lists and mappings")


def _plain_key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, bool):
        return str(key).lower()
    if isinstance(key, int | float):
        return str(key)
    refuse("", "a key must be a text; put it in quotes")
