"""An HTML page in one file, which loads nothing from elsewhere."""

from __future__ import annotations

from rllib_kd.report.drawing import THEMES, VARIABLES
from rllib_kd.text import for_html

_CSS = """
:root { color-scheme: light dark; --bg: #f5f6f8; --card: #ffffff; %(light)s }
@media (prefers-color-scheme: dark) { :root { --bg: #101317; --card: #191d23; %(dark)s } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 15px; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 40px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 4px; }
h3 { font-size: 15px; margin: 14px 0 0; overflow-wrap: anywhere; }
p { margin: 0 0 10px; max-width: 78ch; }
.lead, .note, figcaption { color: var(--muted); }
.note { font-size: 13px; margin: 10px 0 0; max-width: none; }
.card { background: var(--card); border: 1px solid var(--grid); border-radius: 8px; padding: 18px 20px;
  margin: 18px 0 0; min-width: 0; }
.plots { display: grid; grid-template-columns: 1fr 1fr; gap: 18px; margin-top: 18px; }
.plots .card { margin: 0; }
.wide { grid-column: 1 / -1; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%%, 440px), 1fr)); gap: 0 24px; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)); gap: 10px; }
.strip img { display: block; width: 100%%; border-radius: 4px; }
.strip figcaption { font-size: 12px; margin: 2px 0 0; }
figure { margin: 0; }
figcaption { font-size: 14px; margin-bottom: 8px; }
svg { display: block; width: 100%%; height: auto; stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: inherit !important; }
.if-narrow { display: none; }
.scroll { overflow-x: auto; }
.broad { min-width: 820px; }
table { border-collapse: collapse; width: 100%%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 7px 10px; text-align: right; white-space: nowrap; }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; white-space: normal; line-height: 1.3; }
thead [colspan] { text-align: center; padding-bottom: 0; }
thead tr:last-child th, thead [rowspan] { border-bottom: 2px solid var(--grid); }
tbody th { font-weight: 600; white-space: normal; overflow-wrap: anywhere; min-width: 13em; max-width: 22em; }
tbody th, thead tr:first-child th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
tbody th { padding-left: 1.5em; }
thead tr:first-child th:first-child { padding-left: 0; }
tbody tr + tr > * { border-top: 1px solid var(--grid); }
tr.reference > * { color: var(--muted); }
td.words, th.words { text-align: left; white-space: normal; }
.mark { float: left; width: 1.5em; margin-left: -1.5em; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; margin: 0; }
@media (max-width: 860px) {
  main { padding: 18px 12px 28px; } .plots { grid-template-columns: 1fr; } .card { padding: 14px; }
  h1 { font-size: 22px; } .if-wide { display: none; } .if-narrow { display: block; }
}
@media print { .card { break-inside: avoid; } }
"""


def page(title: str, body: str) -> str:
    """Return an HTML page in the report's style, which loads nothing from elsewhere; `title` is text, `body` HTML."""
    css = _CSS % {
        theme: " ".join(f"{name}: {colour};" for name, colour in zip(VARIABLES.values(), colours, strict=True))
        for theme, colours in THEMES.items()
    }
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{for_html(title)}</title>
<style>{css}</style>
</head>
<body>
<main>
<h1>{for_html(title)}</h1>
{body}
</main>
</body>
</html>
"""


def section(key: str, title: str, how_to_read: str, body: str, *, wide: bool = False) -> str:
    """Return a card of the page: a figure, and an explanation of how to read it."""
    kind = "card wide" if wide else "card"
    return (
        f'<section class="{kind}" id="{key}"><h2>{title}</h2><figure><figcaption>{how_to_read}</figcaption>\n'
        f"{body}</figure></section>\n"
    )
