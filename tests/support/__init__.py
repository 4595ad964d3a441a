"""What several tests share: tiny models, small pools and files, runs, plain ways to the same numbers."""
