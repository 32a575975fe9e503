"""What is measured of a network once it is there."""
