"""What a module is: declared, described, built, and known to the pytree registries."""
