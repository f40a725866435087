"""The gateway: answers chat requests and records them. Never trains, never judges."""
