"""What a supervised model is worth: passes, commit decoding, ARC votes, records."""
