"""What developers run by hand: CONTRIBUTING.md."""
