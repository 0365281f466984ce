"""The numbers of an encode: from an adapter's factors to the levels of its coefficients. It knows no file.

The files, in the order of the work:

    components.py               QR and SVD of a delta, without ever forming it
    canonical_form.py           CanonicalForm: every component and vector as unit vectors in basis coefficients
    alignment.py                the gauge of a reference: the factors that differ least from those of an earlier version
    difference_form.py          CanonicalForm of the difference to a reference
    difference_error.py         the NMSE of such a form as coded
    allocation.py               RatePlan: the units that are kept at one lambda, and the precision of each; Objective
    noise_limit.py              how much noise a file may let in
    coders.py, ecsq.py          the quantizers to choose from, with their rates and their cosines
    quantize.py                 QuantizedForm: the plan's vectors as levels, with codebooks and amplitudes
    unit_layers.py, viterbi.py       find the levels of one rung; the search of quantizers with memory
    levels.py                   the arrays of the levels, which all drafts of one encode share
    books.py                    fits codebooks and frequencies to levels
    projection.py               least squares of the factor form
    truncated_svd.py            the strongest components of a dense matrix, for `encode_delta`
"""
