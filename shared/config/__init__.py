"""What a user can ask for: the schema of options, methods, label sets, the command line."""
