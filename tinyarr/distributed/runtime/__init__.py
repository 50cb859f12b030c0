"""How ranks are started, find each other, and hear that one is lost."""
