"""What errors in all packages have in common: names that are absent, arguments that are wrong."""
