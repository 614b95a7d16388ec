"""The teacher service: from a model to signals, and from a student's question to its answer."""
