"""Things to run: small, complete programs written with Parallax."""
