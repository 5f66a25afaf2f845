"""Parameter-inverted image pyramid networks (PIIP, arXiv 2406.04330): large networks see small pictures, and back."""
