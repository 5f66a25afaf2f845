"""Evaluation: figures measured through the running platform."""
