"""ARC: paint and resize a canvas until it is the right output of a task."""
