"""What a supervision step is trained on: halting (ACT), improvement targets (DIS)."""
