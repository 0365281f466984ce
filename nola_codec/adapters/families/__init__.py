"""How each family of image and video models names its modules, and the maps between the layouts of the names.

The weights of one model exist in two layouts: the *original* layout of those who published it (``double_blocks.0.
img_attn.qkv``), and the layout of Diffusers (``transformer_blocks.0.attn.to_q``, ``to_k``, ``to_v``). An adapter is
trained in either, and a base model is stored in either. `rule` and `family` define the tables, one file a family holds
them, `recognition` finds the family of an adapter, and `relayout` names its modules in the other layout.
"""
