"""Run folders: what a run is called, what lies in it, what became of it."""
