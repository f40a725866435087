"""The event language and the stream logic: from turns and signals to preference pairs and snapshots."""
