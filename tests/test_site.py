"""The site: reference made from the code is whole and true, links lead somewhere, terms lead to the glossary."""

import importlib
import inspect
import json
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rllib_kd
from rllib_kd import DistillDQNConfig, limits
from rllib_kd.cli.app import app
from tests.conftest import ray_address

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page.name for page in (DOCS / "pages").glob("*.md"))
NAV = re.findall(r": (\w+\.md)$", (DOCS / "mkdocs.yml").read_text(), re.MULTILINE)

sys.path.insert(0, str(DOCS))
generated, glossary, links, hooks, notebooks = map(
    importlib.import_module, ("generated", "glossary", "links", "hooks", "notebooks")
)
sys.path.remove(str(DOCS))


def words(text: str) -> str:
    """Text without what Markdown and line breaks add."""
    return " ".join(text.replace("`", "").split())


# --- The command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, _ in generated.command_table()])
def test_the_reference_of_a_command_is_its_help(name):
    section = re.split(r"^## ", generated.commands(), flags=re.MULTILINE)
    (page,) = [text for text in section if text.startswith(f"`rllib {name}`")]
    help_ = CliRunner().invoke(app, [name, "--help"], terminal_width=80).output
    rows = [row.split(" | ") for row in page.splitlines() if row.startswith("| `")]
    assert len(rows) >= 6
    for flags, text in rows:
        assert text.removesuffix(" |").removesuffix(" *Required.*").replace("\\|", "|") in words(help_)
        assert all(flag in help_ for flag in re.findall(r"`(-[\w-]+)", flags))
    in_help = set(re.findall(r"^ +.*?(--[\w-]+)", help_.split("Options:")[1], re.MULTILINE)) - {"--help"}
    assert in_help <= set(re.findall(r"--[\w-]+", page))


# --- Settings ---------------------------------------------------------------------------------------------------------


def test_every_setting_has_a_text():
    parameters = list(inspect.signature(DistillDQNConfig.distillation).parameters)[1:]
    assert list(generated.setting_texts()) == parameters
    assert re.findall(r"^### `(\w+)`", generated.settings(), re.MULTILINE) == parameters
    assert set(generated.SEE) <= set(parameters)


@pytest.mark.parametrize(("name", "text"), generated.setting_texts().items())
def test_the_default_in_a_text_is_the_default(name, text):
    default = getattr(DistillDQNConfig(), name)
    assert ("None (default)" in text) == (default is None and name != "teacher")
    for value in re.findall(r"Default: ([\d.]*\d|True|False)|\b([\d.]*\d|False) \(default\)", text):
        assert str(float(default)) == str(float(eval("".join(value))))
    for value in re.findall(r'"(\w+)" \(default', text):
        assert value == default


def test_defaults_that_differ_from_rllibs_are_named():
    table = generated.defaults()
    assert re.search(
        r"^\| `lr` \| `0.003` for vectors \(recurrent students: `0.001`\), `0.001` for images "
        r"\(students of fewer than 40,000 parameters: `0.003`, without TD and memory\) \| `0.0005` \|$",
        table,
        re.MULTILINE,
    )
    assert re.search(r"^\| `dueling` \| `False` \| `True` \|$", table, re.MULTILINE)
    assert "`replay_buffer_config['type']`" in table
    assert "gamma" not in table
    assert "<" not in table  # objects without a text of their own


# --- Python -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", rllib_kd.__all__)
def test_every_public_name_is_documented(name):
    directives = re.findall(r"^::: (.+)$", generated.public_names(), re.MULTILINE)
    (path,) = [path for path in directives if path.endswith(f".{name}")]
    module, _, attribute = path.rpartition(".")
    public = getattr(importlib.import_module(module), attribute)
    assert public is getattr(rllib_kd, name)
    text = inspect.getdoc(public)
    assert text
    if inspect.isfunction(public):
        documented = set(re.findall(r"^    (\w+): ", text, re.MULTILINE))
        assert set(inspect.signature(public).parameters) - {"kwargs"} <= documented


def test_every_limit_has_a_text():
    table = generated.limit_table()
    assert {name for name, _, _ in table} == {name for name in vars(limits) if name.startswith("MAX_")}
    assert [name for name, _, text in table if not text] == []


def test_result_keys_stand_in_the_code():
    code = "".join(file.read_text() for file in Path(rllib_kd.__file__).parent.rglob("*.py"))
    keys = {
        part
        for row in re.findall(r"^\| (`.+?) \|", (DOCS / "pages" / "result_keys.md").read_text(), re.MULTILINE)
        for key in re.findall(r"`([\w/]+)`", row)
        for part in key.split("/")[-1:]
    }
    assert len(keys) > 20
    assert {key for key in keys if key not in code} == {"total_loss"}  # which RLlib writes


# --- Pages and links --------------------------------------------------------------------------------------------------


def test_every_page_is_in_the_folder_of_pages():
    assert [page.name for page in DOCS.glob("*.md")] == []  # it would be on no site


def test_every_page_stands_in_the_navigation_once():
    assert sorted(NAV) == sorted([*PAGES, *links.OUTSIDE.values()])


@pytest.mark.parametrize("page", PAGES)
def test_places_for_generated_reference_are_filled(page):
    text = (DOCS / "pages" / page).read_text()
    names = re.findall(r"<!-- generated: (\w+) -->", text)
    assert set(names) <= set(generated.MADE)
    hints = re.findall(r"<!-- generated: \w+ -->\n(\*[^<]+\*)\n<!-- end -->", text)
    assert len(hints) == len(names)  # for readers of the repository
    assert names == [] or not any(hint in generated.filled(text) for hint in (*hints, "<!--"))


@pytest.mark.parametrize("page", PAGES)
def test_nothing_comes_from_elsewhere(page):
    text = (DOCS / "pages" / page).read_text()
    assert not re.search(r"```mermaid|<script|!\[[^]]*\]\(https?:|src=.https?:", text)  # mermaid is loaded from a CDN


def test_links_lead_to_where_the_site_has_their_targets():
    text = (
        "[a](speed.md#x) [b](../results/c.csv) [c](../../SECURITY.md) [d](https://x.org/a.md) [e](#b) "
        "`[f](../g)` [g](../results/studies.md#x)"
    )
    expected = (
        "[a](speed.md#x) [b](files/docs/results/c.csv) [c](untrusted_files.md) [d](https://x.org/a.md) [e](#b) "
        "`[f](../g)` [g](measured_studies.md#x)"
    )
    assert links.for_site(text, "docs/pages/learning.md") == expected
    assert links.for_site("[a](docs/pages/c.md)", "README.md") == "[a](c.md)"
    assert (
        links.for_site("![x](sizes.png)", "docs/results/sizes/README.md") == "![x](files/docs/results/sizes/sizes.png)"
    )


def test_what_pages_link_is_copied():
    copied = links.copied()
    assert {"docs/results/tiny.csv", "cluster.yaml", "docs/results/sizes/sizes.png"} <= set(copied)
    assert all((links.ROOT / path).is_file() for path in copied)


# --- The notebook -----------------------------------------------------------------------------------------------------


def test_a_notebook_is_a_page_with_its_outputs():
    text = json.dumps(
        {
            "cells": [
                {"cell_type": "markdown", "source": ["# Title\n", "\n", "words"]},
                {"cell_type": "code", "source": ["%%writefile a.py\n", "x = 1"], "outputs": []},
                {
                    "cell_type": "code",
                    "source": ["print(1)"],
                    "outputs": [
                        {"output_type": "stream", "name": "stdout", "text": ["1\n"]},
                        {
                            "output_type": "execute_result",
                            "data": {"image/gif": "AAAA\n", "text/plain": ["<Image>"]},
                            "metadata": {"image/gif": {"alt": "A film."}},
                        },
                    ],
                },
            ]
        }
    )
    assert notebooks.as_markdown(text) == (
        "# Title\n\nwords\n\n`a.py`:\n\n```python\nx = 1\n```\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n"
        '<img src="data:image/gif;base64,AAAA" alt="A film.">\n'
    )


def outputs(cells) -> str:
    return "".join("".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", []))


def test_the_notebook_has_its_outputs():
    cells = json.loads(notebooks.NOTEBOOK.read_text())["cells"]
    kinds = {kind for cell in cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert "image/gif" in kinds
    assert "student / teacher" in outputs(cells)
    assert "Return of the exported student" in outputs(cells)
    assert notebooks.NOTEBOOK.stat().st_size < 1_000_000


@pytest.mark.slow
def test_the_notebook_runs(cluster, monkeypatch):
    pytest.importorskip("nbclient")
    monkeypatch.setenv("RAY_ADDRESS", ray_address())
    printed = outputs(notebooks.executed().cells)
    (ratio,) = re.findall(r"95 % CI +│.*│ +([\d.]+)\* │", printed)
    assert float(ratio) > 0.95
    assert "Same actions: 100%" in printed


# --- The glossary -----------------------------------------------------------------------------------------------------


def test_the_first_use_of_a_term_leads_to_the_glossary():
    anchors = glossary.terms("# Glossary\n\n## Policy lag (staleness)\n\ntext\n\n## Label\n\ntext")
    assert anchors == {"policy lag": "policy-lag-staleness", "staleness": "policy-lag-staleness", "label": "label"}
    html = '<h2>Label</h2><p>A <code>label</code>, <a href="x">a label</a>, the Labels, a label; staleness.</p>'
    linked = glossary.with_links(html, anchors, "glossary.html")
    assert linked == (
        '<h2>Label</h2><p>A <code>label</code>, <a href="x">a label</a>, the '
        '<a class="term" href="glossary.html#label">Labels</a>, a label; '
        '<a class="term" href="glossary.html#policy-lag-staleness">staleness</a>.</p>'
    )


def test_terms_do_not_match_parts_of_words():
    anchors = {"label": "label", "return ratio": "return-ratio"}
    text = "<p>labelled relabel label_x max-label return ratios</p>"
    linked = glossary.with_links(text, anchors, "g.html")
    assert re.findall(r">([\w ]+)</a>", linked) == ["return ratios"]


def test_the_glossary_has_the_terms_of_results():
    anchors = glossary.terms(hooks.GLOSSARY.read_text())
    assert {"label", "q-regret", "policy lag", "return ratio", "teacher fraction", "certificate"} <= set(anchors)
