"""What becomes of a pruned model: ways to store it and to run it that leave its zeros out."""
