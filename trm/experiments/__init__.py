"""What every learner uses to train, sweep, evaluate, compare and be called from a shell."""
