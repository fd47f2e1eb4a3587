"""How it learns: texts → spoken dialogues → checkpoints → figures."""
