"""The small task that shows what an inverted image pyramid is good for."""
