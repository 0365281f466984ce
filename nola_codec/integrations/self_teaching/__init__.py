"""`encode --fit task --data self`: the adapter teaches its own code, and nobody has to have the data of the task.

`self_tuner` makes a tuner for `encode(fit="task")` from a base model and an adapter. The first family that recognizes
the base model draws inputs, and the coefficients are trained so that the outputs stay near those of the adapter.

    teaching.py   `self_tuner`, and the list of families
    contract.py   `Family` and `TeachingRequest`: what a family is given, and what it returns
    language.py   causal language models: text that the adapter writes
    encoders.py   encoder models and classifiers: texts without labels, or random words or images
    diffusion.py, diffusion_inputs.py    UNets and transformers of Diffusers: noised latents and texts at random
    noise.py      images and words at random
    placing.py    the layers of an adapter of any dialect, found as a merge finds them
    sampling.py   batched sampling of text, with the adapter attached
    contrast.py   sampling away from another model
    domain.py     texts of the adapter's domain, which it writes from nothing
    chat_turns.py        questions that an adapter asks itself in the chat template
    brought_prompts.py   prompts of the model card beside an adapter, and of its metadata
    samples.py    samples are drawn once, and kept in a file from which a killed training goes on

To add a family: write a class with the members of `Family` in a file of its own, and put an object of it into
`teaching.FAMILIES`, before any family that would also recognize its models. `Family.make_tuner` loads the model, draws
or reads its inputs, and returns a `TaskTuner` with `TaskData(measured="adapter", distance=..., description=...)`. The
description says in plain sentences what was recognized and what was drawn; it goes into the report and into `--json`.
"""

from nola_codec.integrations.self_teaching.contract import Family, TeachingRequest
from nola_codec.integrations.self_teaching.teaching import find_family, require_language_model, self_tuner

__all__ = ["Family", "TeachingRequest", "find_family", "require_language_model", "self_tuner"]
