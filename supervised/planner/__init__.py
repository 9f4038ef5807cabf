"""TRM-Planner: teacher cache, planning and distillation."""
