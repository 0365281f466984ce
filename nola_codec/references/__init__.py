"""Find the earlier version that a file is coded against, so that the file can be decoded.

    finding.py                  open_decoder: a Decoder of a file, with the references of its whole chain
    exact.py                    an adapter that was never coded, as the records of a reference, and its hash

A reference is named by its hash, so a wrong one is refused, wherever it was found. The specification, "References",
says what is added to what; `decoder/prediction.py` does it.
"""
