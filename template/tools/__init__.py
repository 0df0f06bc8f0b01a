"""What runs outside the training loop: functions that take the trainer; any file may be deleted."""
