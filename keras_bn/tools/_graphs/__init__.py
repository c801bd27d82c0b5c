"""What a model is made of: its batch norm layers, and the calls between its layers."""
