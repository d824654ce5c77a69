"""What quantizing each node costs the model's output, and which nodes to return to float for it."""
