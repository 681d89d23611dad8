"""What `smke doctor` looks at: whether this machine and this installation can train."""
