"""Models: what is supported, how it is loaded, and how pictures and questions become its inputs."""
