"""A game for people over any plan-editing environment: typed edits, hints, a way back."""
