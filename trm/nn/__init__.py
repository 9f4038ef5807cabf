"""Networks: the recursive backbone, its blocks and optimisers; nothing of puzzles or runs."""
