"""The `.nola` file as bytes: `reader.open_container` opens one, `writer.assemble` makes one. It decodes no coefficient.

    prelude.py                  the first 38 bytes: magic, version, flags, checksums
    reader.py                   Container: header and sections, each checked before it is used
    random_access.py            reads at any place of a source, from several threads and processes
    writer.py                   Header and sections -> bytes
    header.py                   Header <-> MessagePack map; its parts are in kind_wire.py (families of records),
                                quantizer_wire.py (quantizers) and draw_wire.py (drawn tensors)
    signature.py                the signature that may follow the last section
    limits.py, work.py          what a file may ask for, and what its header asks for
    fields.py                   values out of a stranger's map: typed, bounded, and refused if they are too large
    canonical.py                MessagePack with one byte string for one value
    names.py                    names of records as templates and numbers
    units.py                    units sections: precisions and amplitudes
    layers.py                   the layers that these imply: which quantizer codes which vector
    unit_tables.py              what a units section says before: kinds, allocation tables, exponents
    rungs.py                    a progressive file as it is at one of its rungs

A name that ends in `_wire` says how something is written in the header. The specification defines all of it.
"""
