"""The sub-commands of `upi-trm supervised`."""
