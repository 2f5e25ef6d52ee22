"""Resources of sessions and sign-in."""
