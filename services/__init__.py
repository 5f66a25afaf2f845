"""The workers and the trainer."""
