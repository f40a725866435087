"""The loop's measuring instrument: simulated users with hidden, stated preferences."""
