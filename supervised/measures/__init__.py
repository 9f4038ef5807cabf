"""What a supervised model predicts, measured on examples that it was not trained on.

`evaluation` unrolls supervision steps with the figures of `guidance`; `commit` and `arc_voting`
decode in more than one pass; `records` keeps the figures of a run, `compare` shows many.
"""
