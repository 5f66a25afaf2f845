"""Mini-InternVL's unified adaptation framework: data of any domain as conversations, mixed with replay, packed."""
