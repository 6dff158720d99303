"""Teachers: frozen Q-networks of several libraries, with one module for each library."""
