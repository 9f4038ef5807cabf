"""The shared backbone and what every learner stands on: models, recipes, runs, devices.

Floor 0 (DESIGN.md section 2): `trm` imports nothing of ours, and every learner imports it. Modules
are imported by name (`from trm.runs.run import Run`), so that reading a recipe or printing help never
loads torch.
"""
