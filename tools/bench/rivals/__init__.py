"""Rivals of nola-codec from papers, on the same work: whole files of an adapter, of a training, or of a dense change.

An adapter is rounded without data: `loraquant` (LoRAQuant) and `sign_factors` (LoRDBA), at the settings of
`weights_only`. Few numbers are trained: `lora_xs` (LoRA-XS) and `uni_lora` (Uni-LoRA), by `training`, on the rows of
`text`, with the sizes and rates of `trained`. A dense change is coded: `delta_come` (Delta-CoMe), `ultra_delta`
(UltraDelta) and `d_qrelo` (D-QReLO), with the parts of `dense`.
"""
