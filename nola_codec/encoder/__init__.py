"""Encode an adapter: `pipeline.encode_adapter` takes an `Adapter` and `EncodeOptions`, and gives a file and its report.

The flow, in its order:

    options.py                  what the caller asks for, checked
    rules.py                    what the adapter's dialect allows
    base_tensors.py             carried tensors that the base model has: left out, or coded as changes
    carried.py                  the form of carried tensors, and what it loses; carried_notes.py says so
    reference.py                what an earlier version predicts of the adapter
    header_room.py              refuses a configuration or metadata that no header may hold
    job.py                      EncodeJob: the adapter in the order of its file, and all that follows from the options
    pipeline.py                 the stages one after the other; start here
    rate_control.py             looks for the lambda that meets the size or the error
    drafts.py                   Draft: the adapter quantized at one lambda, and the size and error of its file
    component_form.py           quantized units -> records (component form)
    factor_form.py              the same for the factor form, in place of the three files above
    content.py                  FileContent, QuantizedAdapter: records and symbols before they are bytes
    assemble.py                 the bytes: symbols through the entropy codecs, and the header around them
    reconstruct.py              decodes the content by the decoder's arithmetic
    measuring.py                holds what was decoded against the source
    summary.py, notes.py        CodedFile -> EncodeReport (report.py; report_rendering.py prints it)
    emptiness.py                refuses a file that is too small for any part of the adapter
    expectation.py              the verdict: what files of the same error kept on measured tasks

Aside: `importance.py` and `filling.py` serve the plan; `delta_errors.py` measures deltas that several records make;
`tuning.py` is the contract of `fit="task"`; `change_splitting.py` prepares `encode_delta`; `clock.py` times the stages.
"""
