"""Reading and writing the folders that hold SAEs."""
