"""The settings of a tree, as in `student={"tree": {...}}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from rllib_kd.networks.mixed_space import MixedBox
from rllib_kd.networks.trees.features import OPERATIONS
from rllib_kd.numeric import is_integer
from rllib_kd.text import did_you_mean

#: The setting of a model config that makes a student a tree.
TREE = "tree"
#: How a tree weighs its states while it grows.
WEIGHTINGS = ("gap", "regret", "uniform")
MAX_LEAVES = 4_096
DEFAULT_LEAVES = 32
#: With n entries there are n (n − 1) / 2 differences and as many sums, and n (n + 1) / 2 products.
MAX_OBLIQUE_INPUTS = 64


def is_tree(shape: object) -> bool:
    """Return whether this shape, a preset's name or settings of a model config, is that of a tree."""
    return isinstance(shape, Mapping) and TREE in shape


@dataclass(frozen=True)
class TreeShape:
    """The settings of one tree.

    Args:
        max_leaf_nodes: the most leaves, in 2, ..., 4,096.
        oblique: what is added to the observation's entries: names in `OPERATIONS`.
        weighting: one of `WEIGHTINGS`; None: copies have different ones.
        names: names of the observation's entries, for reports and rules; none: they have none.
    """

    max_leaf_nodes: int = DEFAULT_LEAVES
    oblique: tuple[str, ...] = ()
    weighting: str | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Any, where: str = "student") -> TreeShape:
        """Return the shape of a dict of settings.

        Args:
            settings: the value of "tree".
            where: name of the setting that has it, for messages.

        Raises:
            ValueError: a setting is unknown, or out of range.
        """
        if not isinstance(settings, Mapping):
            raise ValueError(f"`{where}` has tree={settings!r}: expected a dict such as {{'max_leaf_nodes': 32}}.")
        known = ("max_leaf_nodes", "oblique", "weighting", "names")
        for key in settings:
            if key not in known:
                raise ValueError(
                    f"The tree of `{where}` has no setting '{key}'.{did_you_mean(str(key), known)} Known are: "
                    f"{', '.join(known)}."
                )
        leaves, weighting = settings.get("max_leaf_nodes", DEFAULT_LEAVES), settings.get("weighting")
        if not is_integer(leaves, 2, MAX_LEAVES):
            raise ValueError(
                f"`max_leaf_nodes` of `{where}` must be an integer in 2, ..., {MAX_LEAVES:,}, got {leaves!r}."
            )
        if weighting is not None and weighting not in WEIGHTINGS:
            raise ValueError(
                f"`weighting` of `{where}` must be one of {', '.join(WEIGHTINGS)}, or None, got {weighting!r}."
            )
        added, names = _added(settings.get("oblique", False), where), _names(settings.get("names"), where)
        return cls(int(leaves), added, weighting, names)

    def to_dict(self) -> dict[str, Any]:
        """Return it as a value of "tree" in a model config."""
        own = {"max_leaf_nodes": self.max_leaf_nodes, "oblique": list(self.oblique), "weighting": self.weighting}
        return own | {"names": list(self.names)}

    def check_fits(self, space: gym.Space) -> None:
        """Check that a tree of these settings suits observations of this space.

        Raises:
            ValueError: it does not.
        """
        shape: tuple[int, ...] = space.shape or ()
        if len(shape) != 1 or isinstance(space, MixedBox):
            shown = "images beside other numbers" if len(shape) == 1 else f"of the shape {list(shape)}"
            raise ValueError(
                f"A tree compares the entries of a vector, but observations are {shown}. Images are not supported: "
                "wrap the environment, or choose a network."
            )
        if self.oblique and shape[0] > MAX_OBLIQUE_INPUTS:
            raise ValueError(
                f"An oblique tree of {shape[0]} entries would compare too many pairs of them: at most "
                f"{MAX_OBLIQUE_INPUTS} entries are supported. Leave out `oblique`."
            )
        if self.names and len(self.names) != shape[0]:
            raise ValueError(
                f"A tree has names of {len(self.names)} entries, but observations have {shape[0]}. Name all, or none."
            )


def _names(names: Any, where: str) -> tuple[str, ...]:
    if names is None:
        return ()
    is_list = isinstance(names, Sequence) and not isinstance(names, str)
    if not is_list or not all(isinstance(name, str) and name and name.isprintable() for name in names):
        raise ValueError(f"`names` of `{where}` must be a list of a name for each entry, in one line, got {names!r}.")
    return tuple(names)


def _added(oblique: Any, where: str) -> tuple[str, ...]:
    if isinstance(oblique, bool):
        return tuple(OPERATIONS) if oblique else ()
    is_list = isinstance(oblique, Sequence) and not isinstance(oblique, str)
    if not is_list or not all(isinstance(name, str) and name in OPERATIONS for name in oblique):
        raise ValueError(
            f"`oblique` of `{where}` must be True, False, or a list of {', '.join(OPERATIONS)}, got {oblique!r}."
        )
    return tuple(name for name in OPERATIONS if name in oblique)
