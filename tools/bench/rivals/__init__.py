"""Rivals of nola-codec from papers, on the same work: whole files of an adapter, of a training, or of a dense change.

An adapter is rounded without data: `loraquant` (LoRAQuant), `sign_factors` (LoRDBA). Few numbers are trained:
`lora_xs` (LoRA-XS), `uni_lora` (Uni-LoRA), with `training` for both, on the rows of `text`. A dense change is coded:
`delta_come` (Delta-CoMe), `ultra_delta` (UltraDelta), `d_qrelo` (D-QReLO), with the parts of `dense`.
"""
