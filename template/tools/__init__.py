"""What runs outside the training loop and takes the model as an argument."""
