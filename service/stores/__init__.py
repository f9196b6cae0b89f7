"""What is shared between processes, one noun each."""
