"""What a model of given size costs in operations, bytes and memory, before it is trained."""
