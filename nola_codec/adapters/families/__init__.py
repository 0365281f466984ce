"""How each family of image and video models names its modules, and the maps between the layouts of the names.

The weights of one model exist in two layouts: the *original* layout of those who published it (``double_blocks.0.
img_attn.qkv``), and the layout of Diffusers (``transformer_blocks.0.attn.to_q``, ``to_k``, ``to_v``). An adapter is
trained in either, and a base model is stored in either.

    rule.py, family.py          what a table holds: `Rule` for one module, `Family` for one model
    unet.py, flux.py, sd3.py    the tables
    wan.py, hunyuan_video.py    more tables
    others.py                   tables with few differences
    text_encoders.py            CLIP, open_clip and T5
    catalog.py                  all families
    names.py                    a name taken apart: prefix and path
    recognition.py              the family of an adapter
    relayout.py                 one module: split into rows, or joined of several
    adapter_layout.py           all modules of an adapter, for one target
"""
