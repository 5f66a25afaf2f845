"""Scenes: composed images with complete ground truth, the training world of profile ``tiny``."""
