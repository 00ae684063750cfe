"""What every command needs: errors for the user, progress, and what a disk may refuse."""
