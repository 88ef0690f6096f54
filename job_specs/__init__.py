"""What each job is: inputs, outputs and parameters, declared once. Standard library only."""
