"""Commands in a real pseudo-terminal, seen through an emulated screen."""
