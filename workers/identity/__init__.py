"""The identity role: what needs secrets, slow hashes or the network to sign somebody in."""
