"""What is old, ended or done is cleared away."""
