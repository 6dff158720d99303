"""Teachers from plain weights: linear layers that form a chain, found by their shapes and numbers.

A state dict has neither the order of its layers nor what lies between them. The order follows from the shapes, and from
numbers in the names; the activation must be named. Whatever is ambiguous is asked for.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rllib_kd import limits
from rllib_kd.checkpoints.archives import as_tensors
from rllib_kd.checkpoints.pickles import as_checkpoint_error
from rllib_kd.networks.layers import ELEMENTWISE, Layer
from rllib_kd.teachers.base import Teacher, outputs_of
from rllib_kd.teachers.described import reason
from rllib_kd.teachers.layered import layered_teacher
from rllib_kd.teachers.normalization import STATISTICS
from rllib_kd.teachers.stacks import mlp
from rllib_kd.text import did_you_mean, one_line

logger = logging.getLogger(__name__)

#: The keys of a description.
KEYS = ("activation", "entry", "order", "outputs", "prefix")
#: Entries under which a training script saves a state dict beside others.
_ENTRIES = ("state_dict", "model_state_dict", "q_network_state_dict", "policy_net", "policy_net_state_dict")
#: Parts of names of a dueling network's streams.
_VALUE, _ADVANTAGE = frozenset({"value", "val", "v"}), frozenset({"advantage", "adv", "a"})

_NAME_ONE = (
    "If these are several networks, name the layers of the one that acts in its description, as 'order', or the "
    "beginning of their names, as 'prefix'"
)

#: Kinds of parts of a file that may be statistics; numbers and texts are settings.
_PARTS = (Mapping, Tensor, list, tuple)

_MAX_STEPS = 10_000  # of the search for the order of the layers
_MAX_SHOWN = 12  # layers, in a message


def plain_teacher(saved: Any, network: Mapping[str, Any], uri: str, *, has_pipeline: bool = False) -> Teacher:
    """Create a teacher from a state dict.

    Args:
        saved: weights by name, or a dict that has them as an entry.
        network: what the file does not record: `activation`, as in docs/pages/numpy_runner.md; optionally `outputs`
            ("q_values", the default, or "logits"), `entry` (name of the state dict in the file), `prefix` (beginning of
            the names of the weights to use), and `order` (names of the layers that act, from inputs to outputs).
        uri: source of the weights, for messages.
        has_pipeline: whether the caller says what the network sees, so that no statistics beside it are missed.

    Raises:
        CheckpointError: the layers do not form one chain, or the description does not fit them; the message lists the
            layers.
    """
    with as_checkpoint_error(lambda error: f"'{uri}' has no network that can be read: {reason(error)}"):
        _check(network)
        weights = _entry(saved, network.get("entry"))
        tensors = as_tensors(_named(weights, network), uri)
        layers = _layers(tensors, network)
        parts = {name: value for part in (saved, weights) for name, value in part.items() if name not in tensors}
        teacher = layered_teacher(
            layers,
            tensors,
            observation_shape=[_first(layers, tensors).shape[1]],
            outputs=outputs_of(network.get("outputs", "q_values")),
            source=uri,
        )
    names = [str(name)[:100] for name, part in parts.items() if isinstance(part, _PARTS)]
    found = [name for name in names if STATISTICS.search(name)]
    if found and not has_pipeline:
        logger.warning(
            "'%s' has %s beside the weights of its network, which gets observations as they are. If it was trained on "
            "normalised ones, give load_teacher() pipeline=ObservationPipeline(env.observation_space, (Normalize(mean, "
            "std, clip=None),)).",
            *(one_line(uri), _listed(found)),
        )
    return teacher


def _check(network: Mapping[str, Any]) -> None:
    for key in network:
        if key not in KEYS:
            raise ValueError(f"its description has the key {str(key)[:100]!r}.{did_you_mean(str(key)[:100], KEYS)}")
    for key in ("activation", "entry", "outputs", "prefix"):
        if not isinstance(network.get(key, ""), str):
            raise ValueError(f"its description has {key}={str(network[key])[:100]}, expected a text")
    order = network.get("order", [])
    if not isinstance(order, list | tuple) or not all(isinstance(name, str) for name in order):
        raise ValueError(f"its description has order={str(order)[:100]}, expected a list of names of layers")


def _entry(saved: Any, entry: str | None) -> Any:
    """Return the state dict among the entries of a file."""
    if not isinstance(saved, Mapping) or all(isinstance(value, Tensor) for value in saved.values()):
        if entry is not None:
            raise ValueError(f"it has no entries, but weights: leave entry='{entry:.100}' out")
        return saved
    dicts = [name for name, value in saved.items() if isinstance(value, Mapping) and isinstance(name, str)]
    wanted = [name for name in dicts if (name in _ENTRIES if entry is None else name == entry)]
    if len(wanted) != 1:
        raise ValueError(
            f"its entries are {_listed(sorted(dicts))}; name the one of the weights in its description, such as "
            f"'entry': '{one_line((wanted or dicts or ['state_dict'])[0], limit=100)}'"
        )
    return saved[wanted[0]]


def _named(weights: Any, network: Mapping[str, Any]) -> Any:
    """Return the weights that the description names: the others may be of any kind, or the same under other names."""
    if not isinstance(weights, Mapping) or not weights:
        return weights
    prefix = network.get("prefix", "")
    named = {name: weight for name, weight in weights.items() if str(name).startswith(prefix)}
    if not named:
        raise ValueError(f"no weight's name begins with the prefix '{prefix:.100}'")
    order = network.get("order", ())
    if not order or any(f"{name}.weight" not in named for name in order):
        return named
    own = [f"{name}.{kind}" for name in order for kind in ("weight", "bias")]
    return {name: named[name] for name in own if name in named}


# --- Layers -----------------------------------------------------------------------------------------------------------


def _layers(tensors: dict[str, Tensor], network: Mapping[str, Any]) -> list[Layer]:
    """Return the layers in order; layers without a bias get one of zeros in `tensors`."""
    linears = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight") and tensors[name].ndim == 2]
    shown = _shown(linears, tensors)
    if order := network.get("order"):
        if missing := [name for name in order if name not in linears]:
            raise ValueError(f"there is no linear layer '{missing[0]:.100}' in it: it has {shown}")
        if len(set(order)) < len(order):
            raise ValueError("its order names a layer twice")
        linears = list(order)
    else:
        used = {f"{name}.{kind}" for name in linears for kind in ("weight", "bias")}
        if others := [name for name in tensors if name not in used]:
            raise ValueError(
                f"beside linear layers ({shown}) it has {_listed(others)}, and only chains of linear layers can be "
                "read. If these do not act, name the layers that do, as 'order'; otherwise use Teacher.from_callable()"
            )
    if not linears or len(linears) > limits.MAX_PLAIN_LAYERS:
        raise ValueError(f"it has {len(linears)} linear layers, expected 1 to {limits.MAX_PLAIN_LAYERS}")
    for name in linears:
        tensors.setdefault(f"{name}.bias", torch.zeros(len(tensors[f"{name}.weight"])))
    activation = _activation(network, shown, is_needed=len(linears) > 1)
    value, advantage = ([name for name in linears if _words(name) & words] for words in (_VALUE, _ADVANTAGE))
    if order or not value or not advantage:
        names = list(order) if order else _chain(linears, tensors, shown)
        if len(tensors[f"{names[-1]}.weight"]) == 1:
            raise ValueError(
                f"it ends in one output, that of {names[-1]:.100}, expected one for each action: it has {shown}. "
                f"{_NAME_ONE}"
            )
        return mlp(names, activation)
    return _dueling([name for name in linears if name not in value + advantage], value, advantage, tensors, activation)


def _dueling(
    trunk: list[str], value: list[str], advantage: list[str], tensors: Mapping[str, Tensor], activation: str
) -> list[Layer]:
    """Return the layers of a dueling network, whose streams begin at the end of the trunk."""
    shown = {name: _shown(part, tensors) for name, part in (("value", value), ("advantage", advantage))}
    streams = {
        name: mlp(_chain(part, tensors, shown[name]), activation)
        for name, part in (("value", value), ("advantage", advantage))
    }
    layers: list[Layer] = []
    if trunk:
        layers = [*mlp(_chain(trunk, tensors, _shown(trunk, tensors)), activation), {"op": activation}]
    ends = {len(tensors[layers[-2]["weight"]])} if trunk else {_first(streams["value"], tensors).shape[1]}
    starts = {_first(stream, tensors).shape[1] for stream in streams.values()}
    if starts != ends or len(tensors[streams["value"][-1]["weight"]]) != 1:
        raise ValueError(
            f"its streams do not fit: {_shown(trunk, tensors) or 'no layer before them'}; value {shown['value']}; "
            f"advantage {shown['advantage']}. Expected both to begin where the other layers end, and one value"
        )
    return [*layers, {"op": "dueling", **streams}]


def _activation(network: Mapping[str, Any], shown: str, *, is_needed: bool) -> str:
    activation = network.get("activation", "" if is_needed else "relu")
    if activation not in ELEMENTWISE:
        got = f"has activation='{activation:.100}'" if activation else "does not name the activation between its layers"
        raise ValueError(
            f"it has the linear layers {shown}, but its description {got}. Expected one of {', '.join(ELEMENTWISE)}: "
            "{'activation': 'relu'}. A network with others can be loaded in Python: Teacher.from_callable()"
        )
    return activation


def _chain(names: Sequence[str], tensors: Mapping[str, Tensor], shown: str) -> list[str]:
    """Return the layers in the only order that their shapes, and the numbers in their names, permit.

    Raises:
        ValueError: there is no such order, or more than one.
    """
    found = []
    for chain in _chains(sorted(names, key=_numbers), tensors):
        if (second := _second_network(chain, tensors)) is not None:
            raise ValueError(
                f"its linear layers may be one network, or another one from {second:.100} on: {shown}. {_NAME_ONE}"
            )
        found.append(chain)
        if len(found) == 2:
            raise ValueError(
                f"the order of its linear layers is ambiguous: {shown}. Name them in order in its description: "
                f"'order': {list(found[0])[:_MAX_SHOWN]}"
            )
    if not found:
        raise ValueError(
            f"its linear layers do not form one chain: {shown}. Name those that act in its description, as 'order', or "
            "the beginning of their names, as 'prefix'"
        )
    return found[0]


def _second_network(chain: Sequence[str], tensors: Mapping[str, Tensor]) -> str | None:
    """Return the layer at which another network with the same inputs and outputs begins, such as a target network.

    None if the chain is a single network. The layers of one network have one name, with ascending numbers.
    """
    inputs, outputs = tensors[f"{chain[0]}.weight"].shape[1], len(tensors[f"{chain[-1]}.weight"])
    for before, name in pairwise(chain):
        is_named_anew = (_stem(before), before.rpartition(".")[0]) != (_stem(name), name.rpartition(".")[0])
        if is_named_anew and tensors[f"{name}.weight"].shape[1] == inputs == outputs:
            return name
    return None


def _chains(names: Sequence[str], tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Yield the orders in which each layer takes what the one before it puts out, with ascending numbers.

    Args:
        names: in the order of their numbers.
        tensors: their weights.
    """

    def lowest(rest: Sequence[str]) -> list[str]:
        """Return, of layers with the same name but for its numbers, the one that comes first."""
        first = {_stem(name): name for name in reversed(rest)}
        return [name for name in rest if first[_stem(name)] == name]

    num_steps = 0
    stack = [[name] for name in reversed(lowest(names))]
    while stack:
        num_steps += 1
        if num_steps > _MAX_STEPS:
            raise ValueError("the order of its linear layers is ambiguous. Name them in its description, as 'order'")
        chain = stack.pop()
        if len(chain) == len(names):
            yield chain
            continue
        width, rest = len(tensors[f"{chain[-1]}.weight"]), [name for name in names if name not in chain]
        fitting = [name for name in lowest(rest) if tensors[f"{name}.weight"].shape[1] == width]
        stack += [[*chain, name] for name in reversed(fitting)]


def _first(layers: Sequence[Layer], tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the weight of the first layer."""
    first = layers[0]
    return tensors[first["weight"]] if "weight" in first else _first(first["advantage"], tensors)


def _stem(name: str) -> str:
    return re.sub(r"[0-9]+", "#", name)


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"[0-9]{1,9}", name)]


def _words(name: str) -> set[str]:
    """Return the words of a name: "fcValue.0" has "fc" and "value"."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


def _shown(names: Sequence[str], tensors: Mapping[str, Tensor]) -> str:
    """Return layers with their sizes, for messages."""
    return _listed([f"{name} {tensors[f'{name}.weight'].shape[1]}→{len(tensors[f'{name}.weight'])}" for name in names])


def _listed(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _MAX_SHOWN else ""
    return one_line(", ".join(name[:100] for name in names[:_MAX_SHOWN]) + more, limit=600) or "none"
