"""The demo: a local page on which people watch noise become samples in one step (`ifm demo`, extra [demo])."""
