"""What a world model is trained to do: the loss, and the changes of a batch that come before it."""
