"""What vision towers are worth: the quality of MLLMs that learned to see with each, against what it costs."""
