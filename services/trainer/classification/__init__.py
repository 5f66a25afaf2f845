"""What the stage ``classification`` learns, and from what."""
