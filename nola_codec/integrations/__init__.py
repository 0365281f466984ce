"""What needs other people's libraries: each is imported inside the function that uses it."""
