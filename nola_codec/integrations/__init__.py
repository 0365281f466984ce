"""Connect to other libraries, each imported only when it is used. A module says what it needs when it is imported.

Its files:

    text_rows.py                rows of text: `fit="task"` and `evaluation` read them
    task_text.py                `fit="task"`: rows of text, to train on and to report on
    self_teaching/              `fit="task"` without data: the adapter teaches its own code
    text_batches.py, causal.py  what the above and `evaluation` share: batches of rows, and a language model
    packed_batches.py           batches in which several answers share one prompt
    evaluation/                 `evaluate`: the loss of a task, with and without adapters
    peft_conversion.py          other PEFT methods turned into LoRA by PEFT
    hub/                        publish on the Hugging Face Hub, and open files from there
    peft.py, swapping.py        files in live models of PEFT, and adapters of these as files
    live_models.py              tries a change on a copy without numbers
    task_bank/                  thousands of files in memory beside one model: `TaskBank`
    serving/                    vLLM, SGLang and other servers of language models
    transformers.py, diffusers.py, mlx.py    files in their live models; the callback for the Trainer
"""
