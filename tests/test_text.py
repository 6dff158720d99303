"""Words and numbers for people."""

import math
import sys
import unicodedata
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllib_kd.text import (
    cell,
    did_you_mean,
    for_html,
    for_spreadsheet,
    mean_and_interval,
    means_and_intervals,
    number,
    one_line,
    plain,
    printable,
    ratio,
    rendered,
)


def test_the_nearest_known_name():
    assert did_you_mean("DistilDQN", ["DQN", "DistillDQN"]) == " Did you mean 'DistillDQN'?"
    assert did_you_mean("dqn", ["DQN"]) == " Did you mean 'DQN'?"
    assert did_you_mean("xyz", ["DQN"]) == did_you_mean(1, []) == ""


@pytest.mark.parametrize(
    "character",
    [*"\x00\x07\n\r\t\x1b\x7f\x9b\xa0\u200b\u200d\u2028\u202e\u2066\ufeff\udc80\U000e0041"],
)
def test_what_steers_or_misleads_is_replaced(character):
    assert printable(f"a{character}b") == "a\N{REPLACEMENT CHARACTER}b"


@given(st.text(st.characters(exclude_categories=())))
def test_whatever_is_printed_is_harmless(text):
    for shown in (printable(text), one_line(text), for_html(text), for_spreadsheet(text)):
        assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
        assert shown.isprintable()
        shown.encode()
    assert set(printable(text, lines=True)) - {"\n"} <= set(printable(text)) | {"\N{REPLACEMENT CHARACTER}"}
    assert "<" not in for_html(text)
    assert not for_spreadsheet(text).startswith(("=", "+", "-", "@"))


def test_printable_text_stays_and_long_text_is_cut_in_the_middle():
    assert printable("學生 é ± µ 😀 [red] $x$") == "學生 é ± µ 😀 [red] $x$"
    assert printable(3) == "3"
    cut = printable("a" * 50 + "b" * 50, limit=25)
    assert cut == "a" * 10 + " ... " + "b" * 10
    assert printable("a" * 25, limit=25) == "a" * 25
    assert one_line("  a\n\n  b\tc ") == "a b c"


def test_a_spreadsheet_executes_nothing():
    assert for_spreadsheet("=cmd|' /C calc'!A0") == "'=cmd|' /C calc'!A0"
    assert for_spreadsheet("\t=1") == "'\N{REPLACEMENT CHARACTER}=1"
    assert for_spreadsheet("kl") == "kl"


@dataclass
class Options:
    """A user's own object in a config."""

    rewards: set


def test_sets_in_objects_have_an_order():
    """That of a repr differs between processes."""
    words = ["goal", "crash", "fuel", "lap", "off"]
    for made in (Options(set(words)), SimpleNamespace(rewards=set(words))):
        assert plain(made)["rewards"] == sorted(words)


def test_tables_are_plain_text_on_a_terminal_too(monkeypatch):
    from rich.table import Table

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    table = Table(title=cell("[red]a\x1b[31m", "table.title"))
    table.add_column(cell("[b]"))
    table.add_row(cell("x" * 300))
    text = rendered(table, "[link] \x1b]0;title\x07")
    assert "[red]a\N{REPLACEMENT CHARACTER}[31m" in text
    assert "[b]" in text
    assert "[link]" in text
    assert text.replace("\n", "").isprintable()
    assert "..." in text  # a name of any length takes three lines


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        ((500.0, 0.0), "500.0 ± 0.0"),
        ((21.4, 2.6), "21.4 ± 2.6"),
        ((-0.0621, 0.0432), "-0.062 ± 0.043"),
        ((12_345.0, 210.0), "12,345 ± 210"),
        ((-98_765.4, 12_345.6), "-98,765 ± 12,346"),
        ((-100.4, 1.3), "-100.4 ± 1.3"),
        ((281.04, 5.93), "281.0 ± 5.9"),
        ((-20.2, 0.31), "-20.20 ± 0.31"),
        ((499.93, 0.04), "499.93 ± 0.04"),
        ((1_234.5, 0.012), "1,234.5 ± 0.0"),
        ((-0.001, 3.0), "0.0 ± 3.0"),
        ((0.0, 0.0), "0.0 ± 0.0"),
        ((0.0, 0.0996), "0.00 ± 0.10"),
        ((-0.04, math.inf), "-0.0400"),
        ((21.06, math.nan), "21.1"),
        ((500.0, math.inf), "500.0"),
        ((-0.0, math.inf), "0.0"),
        ((math.nan, 1.0), "–"),
        ((math.inf, math.nan), "∞"),
        ((-math.inf, math.nan), "-∞"),
        ((1.234e-5, 2.1e-6), "1.23e-05 ± 2.1e-06"),
        ((3e7, 1e5), "3e+07 ± 1e+05"),
        ((-0.0, 1e7), "0 ± 1e+07"),
    ],
)
def test_digits_follow_the_interval(pair, text):
    assert mean_and_interval(*pair) == text


@given(st.floats(), st.floats(min_value=0.0))
def test_numbers_are_never_a_negative_zero_nor_wide(mean, half_width):
    text = mean_and_interval(mean, half_width)
    assert not text.startswith("-0") or any(digit in text.split(" ± ")[0] for digit in "123456789")
    assert "nan" not in text
    assert "inf" not in text
    assert len(text) <= 25
    assert text.startswith(number(mean, half_width))


def test_a_column_has_equally_many_decimals_as_far_as_they_mean_something():
    assert means_and_intervals([(-0.062, 0.043), (-0.39, 0.12), (0.5, math.inf)]) == [
        "-0.062 ± 0.043",
        "-0.390 ± 0.120",
        "0.500",
    ]
    assert means_and_intervals([(500.0, 0.0), (21.4, 2.6)]) == ["500.0 ± 0.0", "21.4 ± 2.6"]
    assert means_and_intervals([(12_345.0, 210.0), (0.62, 0.1)]) == ["12,345 ± 210", "0.62 ± 0.10"]
    assert means_and_intervals([]) == []


def test_ratios():
    values = (1.0, -0.0001, 0.98765, math.nan, -123.456, math.inf, 12.34)
    assert [ratio(value) for value in values] == ["1.000", "0.000", "0.988", "–", "-123", "∞", "12.3"]
