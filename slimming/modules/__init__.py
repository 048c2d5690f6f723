"""What a cut makes of modules: sizes, selections, stand-ins, numbers that follow."""
