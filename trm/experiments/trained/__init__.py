"""Trained runs in use: `model` loads one and solves with it, whichever learner wrote it."""
