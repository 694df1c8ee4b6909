"""The shell around the core that brings messages to listeners over HTTP."""
