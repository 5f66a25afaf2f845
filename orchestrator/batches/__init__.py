"""Batches: a keeper that decides what is to be done, and Celery workers that do it."""
