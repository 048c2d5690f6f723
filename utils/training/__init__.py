"""How a network is trained: recipe, schedules, hardware, processes, progress, tracking."""
