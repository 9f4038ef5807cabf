"""What the compiled engines of all domains share: bit sets, packed layouts, threads."""
