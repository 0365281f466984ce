"""The style sheet of a report: light and dark, on screens from 320 to 2,560 pixels and on paper."""

from __future__ import annotations

_LIGHT = ("#ffffff", "#1a1d21", "#4f5963", "#d3d8dd", "#1f5fa8", "#b3470b", "#1d7a4a", "#7a3fa3")
_DARK = ("#14171a", "#e6e9ec", "#aab3bc", "#3a4149", "#7db4f0", "#f2a96b", "#6fcf97", "#c99bf0")
_NAMES = ("paper", "ink", "soft", "line", "first", "second", "third", "fourth")
_LIGHT_STEPS = ("#e3edf7", "#cfe1f2", "#b0d0e8", "#8bbadb", "#63a1cd", "#4187bd", "#276cab", "#135092", "#08306b")
_DARK_STEPS = ("#1d2935", "#1f3a55", "#224c75", "#275f95", "#3474b0", "#4c8cc6", "#70a8da", "#9dc6ea", "#d3e7fa")


def _variables(colours: tuple[str, ...], steps: tuple[str, ...]) -> str:
    named = "".join(f"--{name}:{colour};" for name, colour in zip(_NAMES, colours, strict=True))
    return named + "".join(f"--s{number}:{colour};" for number, colour in enumerate(steps))


STYLE = (
    f":root{{color-scheme:light dark;{_variables(_LIGHT, _LIGHT_STEPS)}}}\n"
    f"@media (prefers-color-scheme:dark){{:root{{{_variables(_DARK, _DARK_STEPS)}}}}}\n"
    f"@media print{{:root{{color-scheme:light;{_variables(_LIGHT, _LIGHT_STEPS)}}}}}\n"
    + "".join(f".s{number}{{fill:var(--s{number})}}\n" for number in range(len(_LIGHT_STEPS)))
    + """\
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif;overflow-wrap:break-word}
main,header,footer{max-width:1400px;margin:0 auto;padding:0 16px}
h1{font-size:1.5rem;line-height:1.25;overflow-wrap:anywhere;margin:24px 0 8px}
h2{font-size:1.2rem;margin:40px 0 8px;border-top:1px solid var(--line);padding-top:16px}
h3{font-size:1rem;margin:24px 0 4px;overflow-wrap:anywhere}
p{max-width:75ch;margin:8px 0}
.verdict{font-size:1.25rem;line-height:1.4}
.soft,figcaption,caption,footer{color:var(--soft)}
figcaption{overflow-wrap:anywhere}
figure{margin:16px 0}
.drawing,.table{overflow-x:auto;max-width:100%}
.table{margin:16px 0}
.drawing:focus-visible,.table:focus-visible{outline:3px solid var(--first);outline-offset:2px}
svg{display:block}
svg text{fill:var(--ink);font:11px ui-monospace,monospace}
.scale{display:inline-block;vertical-align:-1px;max-width:100%}
.bar{fill:var(--first)}
.axis{stroke:var(--soft);fill:none}
.line{fill:none;stroke-width:1.5}
.mark{fill:var(--paper);stroke-width:1.5}
.line.first,.mark.first{stroke:var(--first)}
.line.second,.mark.second{stroke:var(--second)}
.line.third,.mark.third{stroke:var(--third)}
.line.fourth,.mark.fourth{stroke:var(--fourth)}
.line.second,.line.third,.line.fourth{stroke-dasharray:5 3}
.mark.second{fill:var(--second)}
.line.own{stroke:none}
.mark.own{stroke:var(--paper);fill:var(--ink)}
.grid{stroke:var(--line);fill:none}
.many{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(300px,100%),1fr));gap:16px}
.beside{display:flex;flex-wrap:wrap;gap:0 24px;align-items:flex-start}
.beside>div{max-width:100%}
.own th,.own td,.own dt{font-weight:bold}
article{margin:16px 0}
h4{font-size:1rem;margin:16px 0 4px}
.text,dd{white-space:pre-wrap;overflow-wrap:anywhere}
dl{margin:8px 0}
dl>div{border-left:3px solid var(--line);padding-left:12px}
dl>.own{border-color:var(--first)}
dt{color:var(--soft);font-size:.9rem;overflow-wrap:anywhere}
dd{margin:0}
table{border-collapse:collapse;font-size:.9rem}
caption{text-align:left;padding:4px 0}
th,td{padding:3px 14px 3px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
tbody th{font-weight:normal;min-width:7em}
td{overflow-wrap:anywhere;min-width:4em}
td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
code{font-family:ui-monospace,monospace;overflow-wrap:anywhere}
footer{margin-top:40px;padding-bottom:32px;font-size:.9rem}
@media print{html{font-size:11px}body{font-size:1rem}.drawing,.table{overflow:visible}svg{max-width:100%;height:auto}
h2,h3{break-after:avoid}figure,tr{break-inside:avoid}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
)
