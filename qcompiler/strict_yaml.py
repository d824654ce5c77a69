"""YAML without what is easily overlooked: a key that is written twice is refused."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["load_yaml"]


class _Strict(yaml.SafeLoader):
    """Plain data alone, and no key twice: the last would win in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep) for key, _ in node.value]  # type: ignore[no-untyped-call, unused-ignore]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(
                    f"the key {key!r} is written twice, from line {node.start_mark.line + 1} on"
                )
        return super().construct_mapping(node, deep)  # type: ignore[no-untyped-call, unused-ignore]


def load_yaml(text: str) -> Any:
    """The data that the text says.

    Raises:
        ValueError: It is no YAML, or has a key twice.
    """
    try:
        return yaml.load(text, _Strict)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
