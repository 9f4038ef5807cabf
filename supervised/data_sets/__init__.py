"""Data sets of tokens: what a token means, how a data set is built and read, and how it is sampled.

`codecs` and `arc` turn boards of `plan_envs` into tokens; `board_plans` and `arc_plan` say what
`building` writes to a folder; `folders` opens it as `datasets`; trainers draw from a `sampling`
stream. `fixed_images` and `arc_guards` serve teacher caches and ARC evaluations.
"""
