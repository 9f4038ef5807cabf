"""N-Queens: place queens that do not attack one another."""
