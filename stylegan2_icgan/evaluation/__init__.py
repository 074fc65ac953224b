"""What metrics are taken of: images from files and from models, and the conditions they are generated for."""
