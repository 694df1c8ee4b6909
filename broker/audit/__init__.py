"""The log as those read it who ask what happened."""
