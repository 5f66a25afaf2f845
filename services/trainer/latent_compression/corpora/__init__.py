"""Readers of interleaved corpora in the layouts in which they are published."""
