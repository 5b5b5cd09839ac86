"""The method: encoders, dictionary, loss and momentum update."""
