"""The cost of a model of a given size in operations, memory traffic and memory."""
