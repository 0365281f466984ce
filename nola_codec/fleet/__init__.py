"""Work on very many files at once: `encode_many`, `decode_many` and `verify_many`.

    report = nola_codec.encode_many("loras", "files", encoding={"ratio": 30})

A run finds its sources, gives each an output, leaves out what an earlier run has done, hands the rest to an engine, and
writes one row for each output into a manifest beside the outputs.

    many.py                     the functions; keywords.py has their options, report.py what they return
    arguments.py                checks what they are called with
    finding.py, finding_urls.py, source_manifest.py   the sources of paths, of URLs, and of a manifest
    naming.py                   an output for each source, with a safe name of its own
    planning.py                 what is up to date, what is another's, and what needs work
    chains.py                   the checkpoints of a run, each coded against the one before it
    running.py, schedule.py     the run: as many items at a time as processors and memory allow
    engine.py                   what an engine is; local_engine.py has processes, ray_engine.py tasks of Ray
    jobs.py                     what a worker does with one item; stamps.py tells if a source has changed
    manifest.py, rows.py        the manifest and its journal; the columns; parquet.py is the only user of pyarrow
    items.py, watcher.py        plain data: sources, items, jobs, outcomes; what is told of them
"""
