"""Small domains, each with its own look and its own form of question, on which adaptation is tried on one core."""
