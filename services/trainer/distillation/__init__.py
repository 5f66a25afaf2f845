"""Distilling a small vision tower from a large one (Mini-InternVL, section 3.1)."""
