"""Open a model of another library, or of a user's own code, with its own recipe for inputs."""
