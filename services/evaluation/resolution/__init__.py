"""What high resolution is worth: accuracy by tiles, and what they cost."""
