"""TRM-Planner (paper 003): what a frozen teacher computed, chosen, stored, and taught to a student.

`planner` chooses entries among a teacher's steps (stage I); `cache_building` stores them in the
`shards` that `cache_manifest` lays out; `teacher_cache` reads them and `cache_audit` measures them;
`distill` learns from them (stage II). `target_sensitivity` asks whether the choice matters.
"""
