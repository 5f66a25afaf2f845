"""What a teacher is worth: accuracy of small MLLMs with a distilled tower and without, by labelled pictures."""
