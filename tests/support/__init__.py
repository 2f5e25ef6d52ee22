"""What the tests share: real servers, clients that behave as the published ones do, load."""
