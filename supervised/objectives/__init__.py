"""What a supervision step is trained on: halting (`act`), or a target for each step (`dis`).

`supervision_step` has what both share and the trainer asks for, `losses` the losses of tokens, and
`targets` the target generators of DIS.
"""
