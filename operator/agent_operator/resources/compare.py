"""Is a live object as desired? Compares on the desired object's paths only, so that foreign fields never matter."""

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final

# Merge keys of the lists the builders use, as the API server's schema has them (x-kubernetes-list-map-keys). Entries
# that others add to such a list are theirs; every other list is compared as a whole.
_MERGE_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "containers": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "ownerReferences": ("uid",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
_PORT_KEYS: Final = (("containerPort", "protocol"), ("port", "protocol"))
_QUANTITIES: Final = frozenset(("cpu", "memory", "sizeLimit"))
_UNITS: Final[Mapping[str, Decimal]] = {
    "m": Decimal("0.001"),
    "": Decimal(1),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", start=1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)},
}


def find_difference(desired: Any, live: Any, path: str = "") -> str | None:
    """Return the path of the first desired value that the live object lacks or has otherwise; None if all is there."""
    if isinstance(desired, Mapping):
        return _find_in_mapping(desired, live, path)
    if isinstance(desired, list):
        return _find_in_list(desired, live, path)
    return None if _same_value(desired, live, path) else path


def _find_in_mapping(desired: Mapping[str, Any], live: Any, path: str) -> str | None:
    if not isinstance(live, Mapping):
        # The API server leaves out empty mappings.
        return None if not desired and live is None else path
    for key, value in desired.items():
        inner = f"{path}.{key}" if path else key
        # An empty mapping is left out by the API server, too.
        if (key in live or value != {}) and (found := find_difference(value, live.get(key), inner)):
            return found
    return None


def _find_in_list(desired: Sequence[Any], live: Any, path: str) -> str | None:
    if not isinstance(live, list):
        return path
    keys = _merge_keys(path, desired)
    if keys is None:
        return None if _same_items(desired, live, path) else path
    by_key = {tuple(item.get(key) for key in keys): item for item in live if isinstance(item, Mapping)}
    for item in desired:
        name = tuple(item.get(key) for key in keys)
        if found := find_difference(item, by_key.get(name), f"{path}[{'/'.join(str(part) for part in name)}]"):
            return found
    return None


def _merge_keys(path: str, desired: Sequence[Any]) -> tuple[str, ...] | None:
    if not all(isinstance(item, Mapping) for item in desired):
        return None
    field = path.rpartition(".")[2]
    if field == "ports":
        return next((keys for keys in _PORT_KEYS if all(keys[0] in item for item in desired)), None)
    return _MERGE_KEYS.get(field)


def _same_items(desired: Sequence[Any], live: Sequence[Any], path: str) -> bool:
    return len(desired) == len(live) and all(
        find_difference(wanted, found, path) is None for wanted, found in zip(desired, live, strict=True)
    )


def _same_value(desired: Any, live: Any, path: str) -> bool:
    if desired == live:
        return type(desired) is type(live)
    if path.rpartition(".")[2] in _QUANTITIES and isinstance(desired, str) and isinstance(live, str | int):
        # The API server rewrites quantities: 0.5 becomes 500m, 1024Mi becomes 1Gi.
        return _quantity(desired) == _quantity(str(live))
    return False


def _quantity(text: str) -> Decimal | str:
    number = text.rstrip("mkKMGTPEi")
    try:
        return Decimal(number) * _UNITS[text[len(number) :]]
    except (InvalidOperation, KeyError):
        return text
