"""Other ways to teach as parts of the one step: what joins students to a teacher, and the loss that holds it all."""
