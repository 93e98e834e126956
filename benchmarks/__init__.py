"""What the figures in the documentation come from; each module is a command."""
