"""The removal of old messages, of what deleted listeners leave behind, and of finished replays."""
