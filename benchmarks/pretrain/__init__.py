"""Pretraining of picto-clip, the embedded backbone: corpus, captions, training, release."""
