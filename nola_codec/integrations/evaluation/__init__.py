"""Measure the loss of a task on held-out rows: of a base model, of adapters, and of the files made from them.

Its files, from the top down:

    evaluating.py   `evaluate`: the flow
    subjects.py     what is measured, and how it is put into the base model that lies in memory
    live_base.py    that model, and the same weights again after each adapter
    measuring.py    the loss of each row, and continuations of prompts
    report.py       what was found: `Evaluation`, and its text
    statistics.py   ratios of sums over rows, and how far off they may be
"""
