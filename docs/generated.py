"""Reference that is made of the code when the site is built: `<!-- generated: NAME -->` on a page is its place.

It takes the place of what follows up to `<!-- end -->`: a hint for those who read the page in the repository.
"""

from __future__ import annotations

import inspect
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_PLACE = re.compile(r"<!-- generated: (\w+) -->(?:[^<]*<!-- end -->)?")
#: Attributes of a config that are no settings.
_NO_SETTINGS = {"algo_class", "simple_optimizer"}
#: Where pages say more about a setting: when to change it, and what was measured.
SEE = {
    "teacher": "[Teachers](teachers.md)",
    "ensemble": "[Several teachers](teachers.md)",
    "trust_checkpoint": "[Files that you do not trust](untrusted_files.md)",
    "loss": "[Choosing a loss](advice.md#loss), [formulas](losses.md)",
    "temperature": "[Choosing a temperature](advice.md#temperature)",
    "regret_coeff": "[Tiny students](learning.md#tiny-students)",
    "gap_weighting": "[Which states count](advice.md#which-states-count)",
    "quantize": "[Students that learn for 8 bits](c.md#students-that-learn-for-8-bits)",
    "rollout_policy": "[Whose states](whose_states.md)",
    "teacher_fraction": "[Whose states](whose_states.md#when-to-change-it), "
    "[what was measured](learning.md#how-much-of-the-mixture-stays-the-teachers)",
    "max_regret": "[Whose states](whose_states.md#when-to-change-it), "
    "[restarts](families.md#restarts), [tiny students](learning.md#tiny-students)",
    "label_fraction": "[Labels of some states](atari.md#labels-of-some-states)",
    "compression": "[Choosing a size](advice.md#size)",
    "student": "[Images and Atari](atari.md)",
    "students": "[Families](families.md)",
    "restarts": "[Restarts](families.md#restarts)",
    "num_validation_episodes": "[Restarts](families.md#restarts)",
    "init": "[What it saves](learning.md#first-weights-from-the-teacher)",
    "max_staleness": "[Speed](speed.md)",
    "held_out": "[Distil from files](recorded.md#distil-from-files)",
    "set_aside": "[Certify agreement](recorded.md#certify-agreement)",
}


def filled(markdown: str) -> str:
    """Return the page with each place for generated reference filled.

    Args:
        markdown: text of the page.

    Raises:
        KeyError: there is no reference of that name.
    """
    return _PLACE.sub(lambda match: MADE[match[1]](), markdown)


# --- Settings ---------------------------------------------------------------------------------------------------------


def setting_texts() -> dict[str, str]:
    """Return what the docstring of `.distillation()` has about each setting, as one paragraph."""
    from rllib_kd import DistillDQNConfig

    docstring = inspect.cleandoc(DistillDQNConfig.distillation.__doc__ or "")
    arguments, _, _ = docstring.partition("Args:\n")[2].partition("\n\nReturns:")
    texts: dict[str, str] = {}
    name = ""
    for line in arguments.splitlines():
        start = re.match(r"    (\w+): (.*)", line)
        if start is not None:
            name = start[1]
            texts[name] = start[2]
        else:
            texts[name] += " " + line.strip()
    return texts


def settings() -> str:
    """Return the reference of `.distillation()`: each setting with its default, its type and its docstring."""
    from rllib_kd import DistillDQNConfig

    config = DistillDQNConfig()
    parameters = inspect.signature(DistillDQNConfig.distillation).parameters
    lines = []
    for name, text in setting_texts().items():
        kind = str(parameters[name].annotation).replace("os.PathLike[str]", "PathLike")
        lines += [f"### `{name}`", "", f"Default: `{getattr(config, name)!r}`. Type: `{kind}`.", ""]
        first = text[0].upper() if text[0].isascii() else text[0]  # a capital β looks like a B
        lines += [_with_code(first + text[1:]), ""]
        if name in SEE:
            lines += [f"See {SEE[name]}.", ""]
    return "\n".join(lines)


def changed_defaults() -> dict[str, tuple[Any, Any]]:
    """Return the defaults of RLlib's own settings that differ from `DQNConfig`: ours, and RLlib's."""
    from ray.rllib.algorithms.dqn import DQNConfig

    from rllib_kd import DistillDQNConfig

    ours, rllibs = vars(DistillDQNConfig()), vars(DQNConfig())
    names = [name for name in rllibs if name in ours and not name.startswith("_") and name not in _NO_SETTINGS]
    changed = {name: (ours[name], rllibs[name]) for name in names if ours[name] != rllibs[name]}
    buffer, rllibs_buffer = changed.pop("replay_buffer_config")
    for key in buffer:
        if buffer[key] != rllibs_buffer.get(key):
            changed[f"replay_buffer_config['{key}']"] = buffer[key], rllibs_buffer.get(key)
    return changed


def defaults() -> str:
    """Return a table of the defaults that differ from RLlib's."""
    from rllib_kd.algorithm.defaults import FOR_IMAGES, FOR_SEQUENCES, FOR_VECTORS

    def by_student(name: str) -> str:
        recurrent = (
            "" if FOR_SEQUENCES[name] == FOR_VECTORS[name] else f" (recurrent students: `{FOR_SEQUENCES[name]!r}`)"
        )
        return f"`{FOR_VECTORS[name]!r}` for vectors{recurrent}, `{FOR_IMAGES[name]!r}` for images"

    rows = []
    for name, (own, rllibs) in changed_defaults().items():
        key = "train_batch_size_per_learner" if name == "train_batch_size" else name
        shown = f"`{own.__name__ if isinstance(own, type) else repr(own)}`"
        if key in FOR_VECTORS:
            shown = by_student(key)
            if key == "lr":
                shown += " (students of fewer than 40,000 parameters: `0.003`, without TD and memory)"
        elif name == "replay_buffer_config['capacity']":
            shown = "50,000 rows; of images 400,000, of recorded rows all; at most 4 GiB. With trees 200,000 rows"
        rows.append([f"`{key}`", shown, f"`{rllibs!r}`"])
    if "training_intensity" not in changed_defaults():
        name = "training_intensity"
        rows.append([f"`{name}`", by_student(name), "`None`"])
    return _table(["setting", "here", "RLlib's DQN"], rows)


# --- The command line -------------------------------------------------------------------------------------------------


def commands() -> str:
    """Return every command with its arguments and flags, as `--help` has them."""
    lines: list[str] = []
    for name, command in command_table():
        lines += [f"## `rllib {name}`", "", *_command_text(command.help or ""), ""]
        rows = []
        for parameter in command.params:
            if not getattr(parameter, "hidden", False):
                rows.append([_flags(parameter), parameter.help + (" *Required.*" if parameter.required else "")])
        lines += [_table(["flag", "what it does"], rows), ""]
    return "\n".join(lines)


def command_table() -> Iterator[tuple[str, Any]]:
    """Yield the commands of `rllib`, by name."""
    import typer.main

    import rllib_kd.cli.main  # noqa: F401 (adds the commands)
    from rllib_kd.cli.app import app

    yield from typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]


def _flags(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`"
    value = f" {parameter.metavar}" if parameter.metavar else ""
    names = [*sorted(parameter.opts, key=lambda flag: flag.startswith("--")), *parameter.secondary_opts]
    return ", ".join(f"`{flag}{value}`" for flag in names)


def _command_text(help: str) -> list[str]:
    """Return the description of a command; its examples, after a backspace, as code."""
    text, _, examples = inspect.cleandoc(help).partition("\b\n")
    code = ["", "```bash", *examples.strip().splitlines(), "```"] if examples.strip() else []
    return [" ".join(text.split()), *code]


# --- Python -----------------------------------------------------------------------------------------------------------


def public_names() -> str:
    """Return a directive of mkdocstrings for every public name."""
    from rllib_kd import _HOME

    return "\n\n".join(f"::: rllib_kd.{home}.{name}" for name, home in sorted(_HOME.items()))


# --- Limits -----------------------------------------------------------------------------------------------------------


def limit_table() -> list[tuple[str, int, str]]:
    """Return the limits on files of others, each with its value and its comment in limits.py."""
    from rllib_kd import limits as values

    found, above = [], ""
    path = Path(values.__file__)
    comments: dict[int, str] = {}
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                comments[token.start[0]] = token.string.lstrip("#: ")
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        constant = re.match(r"(MAX_\w+)\s*=", line)
        if line.startswith("#:"):
            above = f"{above} {comments[number]}".strip()
        elif constant is not None:
            found.append((constant[1], getattr(values, constant[1]), comments.get(number, above)))
            above = ""
    return found


def limits() -> str:
    """Return the limits as a table."""
    return _table(["limit", "value", ""], [[f"`{name}`", f"{value:,}", text] for name, value, text in limit_table()])


# --- Text -------------------------------------------------------------------------------------------------------------


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _with_code(text: str) -> str:
    """Return a docstring with its dicts and its words in quotation marks as code."""
    parts = re.split(r"(`[^`]*`)", text)  # every second one is code already
    parts[::2] = [re.sub(r'(\{"[^}]*\}+|"[\w.-]+")', r"`\1`", part) for part in parts[::2]]
    return "".join(parts)


MADE: dict[str, Callable[[], str]] = {
    "settings": settings,
    "defaults": defaults,
    "commands": commands,
    "public_names": public_names,
    "limits": limits,
}
