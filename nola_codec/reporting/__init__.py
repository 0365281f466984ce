"""Reports of files: one page that says what a file holds, what its bytes are spent on, and what it lost.

Every figure of a page is in `FileReport`, which `nola-codec report --json` prints. Its files, from the top down:

    writing.py              `report`: the flow
    page.py                 the page, as HTML
    style.py                its style sheet
    svg.py                  its drawings, and the escaping of names
    data.py                 `FileReport`: all figures
    losses.py               errors and spectra, against the original adapter
    coefficient_costs.py    bytes, code lengths and histograms of the coefficients
    places.py               module types and layers, from the names of weights
"""
