"""Data sets of tokens: codecs, builders, augmentation, sampling."""
