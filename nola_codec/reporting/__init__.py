"""Reports of files: one page that says what a file holds, what its bytes are spent on, and what it lost.

Every figure of a page is in `FileReport`, which `nola-codec report --json` prints. Its files, from the top down:

    writing.py              `report`: the flow
    page.py                 the page, as HTML
    evaluation_section.py   its section about the losses of a task
    curve_section.py        its section about size against error
    losses_section.py       its section about what was kept
    markup.py               sections, tables and heat maps
    style.py                the style sheet
    svg.py                  drawings, and the escaping of names
    comparison_plot.py      `compare --plot`
    data.py                 `FileReport`: all figures
    evaluation.py           what an evaluation found, from its JSON
    curve.py                the adapter at other sizes
    peers.py                what other ways to store the adapter cost and lose
    rounding.py             how they round
    losses.py               errors and spectra, against the original adapter
    coefficient_costs.py    bytes, code lengths and histograms of the coefficients
    places.py               module types and layers, from the names of weights

Aside: `type_table.py` adds up the tensors of `inspect --tensors` by module type.
"""
