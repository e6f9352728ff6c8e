"""The checks of the course's inline exercises, one per notebook: a student's function in, one sentence out."""
