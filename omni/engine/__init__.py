"""What runs next: many sequences at once, in slots."""
