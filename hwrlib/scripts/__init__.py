"""What makes the shipped and recorded files; nothing imports it."""
